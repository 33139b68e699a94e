# A link is squeezed until what it carries waits in a long queue, and what does not fit is lost.
# It is not dead, but another way is quicker. What runs there is slow until there is room again.
world: london tokyo; singapore frankfurt dubai
streams: 4 at london to frankfurt

at 500ms bandwidth 32kbit london-frankfurt
  expect path london frankfurt via dubai within 30s
at 1s reset london-frankfurt

expect failed 0
expect tokens equal
