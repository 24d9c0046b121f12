// RequestQueue: who waits, and in which order they go. It takes no lock: the batcher holds one.
//
// The same as serving/request_queue.py, which tells more.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <limits>
#include <vector>

#include "clock.h"
#include "request.h"

namespace lane {

class RequestQueue {
 public:
  explicit RequestQueue(int levels);

  std::size_t count() const { return count_; }
  std::int64_t rows() const { return rows_; }
  // How many wait that are no background requests.
  std::size_t callers() const { return count_ - levels_.back().size(); }

  // Throws std::out_of_range where there is no such priority.
  void append(RequestPtr request);
  // Takes it out, if it is here; otherwise null. To let it go is for who holds no lock any more.
  RequestPtr discard(const Request& request);
  // Takes out those whose deadline has passed.
  std::vector<RequestPtr> expire(Seconds now);
  // Whether with this one more, a batch of those that wait could grow no further.
  bool closes_batch(const Request& request, std::int64_t max_rows) const;
  // When the first came; -infinity where a batch of those that wait can grow no further.
  Seconds first_arrival(std::int64_t max_rows) const;
  // Takes out the first, and those after it that fit into a batch of so many rows.
  std::vector<RequestPtr> take(std::int64_t max_rows);
  std::vector<RequestPtr> take_all();

 private:
  std::deque<RequestPtr>* level_of(const Request& request);  // null where there is none

  std::vector<std::deque<RequestPtr>> levels_;  // by priority, then the background
  std::size_t count_ = 0;
  std::int64_t rows_ = 0;
  Seconds earliest_deadline_ = std::numeric_limits<Seconds>::infinity();
  LayoutPtr newest_layout_;
};

}  // namespace lane
