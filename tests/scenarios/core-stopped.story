# A core stands still without dying (SIGSTOP): its socket is open, nothing answers. It is left
# behind like one that died, and when it goes on it is welcome again.
world: london tokyo; singapore frankfurt dubai
streams: 3 at tokyo of 100 tokens

at 500ms stop core-singapore
  expect served tokyo anyone by dubai frankfurt within 15s
at 1s resume core-singapore
  expect served tokyo anyone by singapore within 40s

expect failed 0
expect continued at least 1
expect tokens equal
