# A core is half dead: it answers probes, and its engine finishes no step. The edge goes by what
# it serves, and finishes the answers elsewhere.
world: london tokyo; singapore frankfurt dubai
streams: 3 at tokyo of 100 tokens

at 500ms hang core-singapore
  expect served tokyo anyone by dubai frankfurt within 15s
at 1s unhang core-singapore
  expect served tokyo anyone by singapore within 40s

expect failed 0
expect continued at least 1
expect tokens equal
