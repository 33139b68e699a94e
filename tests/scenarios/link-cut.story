# The link from an edge to its nearest region is cut, both ways and without a word. Requests go
# through a relay within the time that the path needs to be found silent; nobody loses a token.
# Once it is mended, and has held for a while, it is taken again.
world: london tokyo; singapore frankfurt dubai
streams: 3 at london to frankfurt of 100 tokens
streams: 1 at london

at 500ms cut london-frankfurt
  expect path london frankfurt via dubai within 10s
at 1s mend london-frankfurt
  expect path london frankfurt direct within 30s

expect streams at least 4
expect failed 0
expect continued at least 1
expect silence at most 5s
expect tokens equal
