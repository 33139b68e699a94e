# A link is squeezed until what it carries waits in a long queue. Another way is quicker then,
# until the link is wide again.
world: london tokyo; singapore frankfurt dubai
streams: 4 at london to frankfurt

at 500ms bandwidth 64kbit london-frankfurt
  expect path london frankfurt via dubai within 20s
at 1s reset london-frankfurt
  expect path london frankfurt direct within 30s

expect failed 0
expect tokens equal
