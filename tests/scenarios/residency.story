# Both regions die that the bank's data may be in. It is told so, and is served by no other; those
# who may go elsewhere do: its answers wait 3 s for a way back, and end. When one is back, so is the
# bank.
world: london tokyo; singapore frankfurt dubai
tenant: gulfbank AE EU
streams: 2 at london as gulfbank
streams: 2 at london

at 500ms kill core-dubai
at 800ms kill core-frankfurt
  expect answer london gulfbank 503 within 10s
  expect served london anyone by singapore within 10s
at 5s wait
  expect answer london gulfbank 503 within 0s
at 5s start core-frankfurt
at 5s start core-dubai
  expect served london gulfbank by frankfurt dubai within 40s

expect failed of anyone 0
expect failed of gulfbank at least 2
expect broken 0
expect tokens equal
