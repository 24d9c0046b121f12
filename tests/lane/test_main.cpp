// The entry of the test binary; each other file here tests the file of the lane's core of its name.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
