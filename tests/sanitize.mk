# How the sanitized builds of the tests are compiled. Checks as calls, not inline: half the compile time, the same
# reports. -g1: enough for file and line.
SANITIZE := -g1 -fsanitize=address,undefined -fno-sanitize-recover=all \
  --param asan-instrumentation-with-call-threshold=0
