# Three packets in ten are lost on the way out. The link is not dead, only bad: another way is
# better, and no answer suffers.
world: london tokyo; singapore frankfurt dubai
streams: 3 at london to dubai of 100 tokens

at 500ms loss 30% london-dubai out
  expect path london dubai via frankfurt within 30s

expect failed 0
expect tokens equal
