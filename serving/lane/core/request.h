// Request: one that waits for a batch, or is in one. Whoever claims it first completes it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "clock.h"
#include "layout.h"
#include "outcome.h"

namespace lane {

class Request {
 public:
  virtual ~Request() = default;

  // The right to complete the request: true for whoever asks first, then never again. Of any
  // thread.
  virtual bool claim() = 0;
  // Somebody has claimed it.
  virtual bool settled() const = 0;
  // Tells the caller, once, after `claim`. Must not wait, throws nothing.
  virtual void complete(Outcome outcome) = 0;

  LayoutPtr layout;
  std::vector<const std::byte*> inputs;  // `rows` rows each, contiguous, until it is completed
  std::int64_t rows = 0;
  Seconds arrived = 0;
  Seconds deadline = std::numeric_limits<Seconds>::infinity();
  int priority = 0;         // 0 runs first
  bool background = false;  // the server's own: after those of every level, and not counted
};

using RequestPtr = std::shared_ptr<Request>;

}  // namespace lane
