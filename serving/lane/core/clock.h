// The clock of every time and deadline in the lane.
#pragma once

#include <time.h>

namespace lane {

using Seconds = double;

// Seconds of CLOCK_MONOTONIC, which is Python's time.monotonic: both sides compare deadlines.
inline Seconds now() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<Seconds>(time.tv_sec) + static_cast<Seconds>(time.tv_nsec) * 1e-9;
}

}  // namespace lane
