# A region's core dies at once. Streams that it served go on in another region, token for token.
# Who may be served by no other is told so; and when the core is back, it serves again.
world: london tokyo; singapore frankfurt dubai
streams: 3 at london of 100 tokens
streams: 2 at tokyo

at 500ms kill core-frankfurt
  expect served london anyone by dubai singapore within 10s
  expect answer london to-frankfurt 503 within 10s
at 1s start core-frankfurt
  expect served london anyone by frankfurt within 40s

expect streams at least 8
expect failed 0
expect continued at least 1
expect tokens equal
