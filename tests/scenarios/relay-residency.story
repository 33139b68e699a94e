# Only a relay in Singapore still leads to Dubai. The bank's data may not pass there, not even
# encrypted: it is refused, while others take that way.
world: london tokyo; singapore frankfurt dubai
tenant: gulfbank AE EU
streams: 2 at london

at 500ms cut london-dubai
at 500ms kill core-frankfurt
  expect path london dubai via singapore within 10s
  expect answer london gulfbank 503 within 10s
at 1s wait
  expect answer london gulfbank 503 within 0s
  expect path london dubai via singapore within 10s
at 1200ms mend london-dubai
  expect served london gulfbank by dubai within 30s

expect failed 0
expect continued at least 1
expect tokens equal
