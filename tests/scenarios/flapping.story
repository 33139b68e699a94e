# A link comes and goes. Requests leave it, and do not come back each time that it is up.
world: london tokyo; singapore frankfurt dubai
streams: 3 at london to frankfurt of 100 tokens

at 500ms flap 200ms/400ms london-frankfurt
  expect path london frankfurt via dubai within 10s
at 3500ms mend london-frankfurt
  expect path london frankfurt direct within 30s

expect failed 0
expect changes london frankfurt at most 6
expect tokens equal
