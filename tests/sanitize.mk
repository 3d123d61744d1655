# How the sanitized builds of the tests are compiled. Checks as calls, not inline: half the compile time, the same
# reports. -O0: half of what -O1 takes. -g1: enough for file and line.
SANITIZE := -O0 -g1 -fsanitize=address,undefined -fno-sanitize-recover=all \
  --param asan-instrumentation-with-call-threshold=0
