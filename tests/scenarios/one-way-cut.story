# What the edge sends arrives, and nothing comes back; then the other way round. Both are found
# out by what is not answered.
world: london tokyo; singapore frankfurt dubai
streams: 3 at tokyo to singapore of 100 tokens

at 500ms cut tokyo-singapore back
  expect path tokyo singapore via dubai within 10s
at 1s mend tokyo-singapore
  expect path tokyo singapore direct within 30s
at 1500ms cut tokyo-singapore out
  expect path tokyo singapore via dubai within 10s

expect failed 0
expect continued at least 1
expect silence at most 5s
expect tokens equal
