# The direct link is cut, and then the core dies that relays in its place. Streams go on over
# whatever is left: twice broken, and whole.
world: london tokyo; singapore frankfurt dubai
streams: 3 at tokyo to singapore of 150 tokens

at 500ms cut tokyo-singapore
  expect path tokyo singapore via dubai within 10s
at 1s kill core-dubai
  expect path tokyo singapore via frankfurt within 10s
at 1500ms start core-dubai
at 1600ms mend tokyo-singapore
  expect path tokyo singapore direct within 30s

expect failed 0
expect continued at least 1
expect tokens equal
