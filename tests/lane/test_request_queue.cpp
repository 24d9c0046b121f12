// The queue against a plain list that is sorted anew each time, as tests/test_batcher_properties.py
// has it.
#include <doctest/doctest.h>

#include <algorithm>
#include <random>

#include "batching.h"
#include "request_queue.h"

namespace lane {
namespace {

constexpr Seconds kNever = std::numeric_limits<Seconds>::infinity();
constexpr int kLevels = 3;

RequestPtr request_of(std::int64_t rows, std::int64_t width = 1, int priority = 0) {
  auto request = make_request(Values(static_cast<std::size_t>(rows * width)), width);
  request->priority = priority;
  return request;
}

int turn(const Request& request) { return request.background ? kLevels : request.priority; }

// As many from the front as fit and have the first's layout.
std::size_t first_batch(const std::vector<RequestPtr>& waiting, std::int64_t max_rows) {
  std::size_t count = 0;
  std::int64_t rows = 0;
  for (const auto& request : waiting) {
    rows += request->rows;
    if (count && (rows > max_rows || !(*request->layout == *waiting[0]->layout))) break;
    ++count;
  }
  return count;
}

TEST_CASE("a batch is the first and those after it that fit, lower numbers and callers first") {
  RequestQueue queue(2);
  const auto own = request_of(1), late = request_of(1, 1, 1);
  const auto big = request_of(3), one = request_of(1);
  own->background = true;
  for (const auto& request : {own, late, big, one}) queue.append(request);
  CHECK(queue.callers() == 3);
  CHECK(queue.take(4) == std::vector<RequestPtr>{big, one});
  CHECK(queue.take(4) == std::vector<RequestPtr>{late, own});
  CHECK(queue.count() == 0);
  CHECK(queue.rows() == 0);
}

TEST_CASE("nobody is overtaken by one behind who would fit") {
  RequestQueue queue(2);
  const auto first = request_of(2), big = request_of(3), small = request_of(1, 1, 1);
  for (const auto& request : {first, big, small}) queue.append(request);
  CHECK(queue.take(4) == std::vector<RequestPtr>{first});
  CHECK(queue.take(4) == std::vector<RequestPtr>{big, small});
}

TEST_CASE("there is no level but those that were asked for") {
  RequestQueue queue(2);
  CHECK_THROWS_AS(queue.append(request_of(1, 1, 2)), std::out_of_range);
  CHECK_THROWS_AS(queue.append(request_of(1, 1, -1)), std::out_of_range);
  CHECK(queue.count() == 0);
  CHECK(queue.discard(*request_of(1, 1, 2)) == nullptr);
}

TEST_CASE("equal layouts share a batch, whichever pointer says so") {
  RequestQueue queue(1);
  queue.append(request_of(1));
  CHECK_FALSE(queue.closes_batch(*request_of(1), 4));
  CHECK(queue.closes_batch(*request_of(3), 4));
  CHECK(queue.closes_batch(*request_of(1, 2), 4));
  queue.append(request_of(1));
  CHECK(queue.take(4).size() == 2);
}

// The queue and the list, which each step is done to.
struct Both {
  RequestQueue queue{kLevels};
  std::vector<RequestPtr> waiting, known;
  std::mt19937 random;

  explicit Both(unsigned seed) : random(seed) {}
  int any(int most) { return std::uniform_int_distribution<int>(0, most)(random); }

  void append(int number) {
    auto request = request_of(any(4), 1 + any(3) / 3, any(kLevels - 1));
    request->arrived = number;
    request->background = any(3) == 0;
    request->deadline = any(1) ? kNever : 1 + any(2);
    queue.append(request);
    known.push_back(request);
    waiting.push_back(request);
    const auto before = [](const auto& a, const auto& b) { return turn(*a) < turn(*b); };
    std::stable_sort(waiting.begin(), waiting.end(), before);
  }
  void discard() {
    if (known.empty()) return;
    const auto request = known[static_cast<std::size_t>(any(static_cast<int>(known.size()) - 1))];
    const auto found = std::find(waiting.begin(), waiting.end(), request);
    CHECK(queue.discard(*request) == (found == waiting.end() ? nullptr : request));
    if (found != waiting.end()) waiting.erase(found);
  }
  void expire() {
    const Seconds at = 0.5 + any(3);
    const auto lives = [&](const RequestPtr& request) { return request->deadline > at; };
    const auto late = std::stable_partition(waiting.begin(), waiting.end(), lives);
    CHECK(queue.expire(at) == std::vector<RequestPtr>(late, waiting.end()));
    waiting.erase(late, waiting.end());
  }
  void take() {
    const int rows = 1 + any(5);
    const auto end = waiting.begin() + static_cast<std::ptrdiff_t>(first_batch(waiting, rows));
    CHECK(queue.take(rows) == std::vector<RequestPtr>(waiting.begin(), end));
    waiting.erase(waiting.begin(), end);
  }
  void check() const {
    std::int64_t rows = 0;
    std::size_t callers = 0;
    Seconds arrival = kNever;
    for (const auto& request : waiting) {
      rows += request->rows;
      callers += !request->background;
      arrival = std::min(arrival, request->arrived);
    }
    CHECK(queue.count() == waiting.size());
    CHECK(queue.rows() == rows);
    CHECK(queue.callers() == callers);
    const bool grows = first_batch(waiting, 6) == waiting.size() && rows < 6;
    CHECK(queue.first_arrival(6) == (grows ? arrival : -kNever));
  }
};

TEST_CASE("the queue keeps order and count through whatever is done to it") {
  for (unsigned seed = 0; seed < 300; ++seed) {
    CAPTURE(seed);
    Both both(seed);
    for (int number = 0; number < 40; ++number) {
      const int step = both.any(5);
      if (step < 3) both.append(number);
      else if (step == 3) both.discard();
      else if (step == 4) both.expire();
      else both.take();
      both.check();
    }
    CHECK(both.queue.take_all() == both.waiting);
    CHECK(both.queue.count() == 0);
    CHECK(both.queue.rows() == 0);
  }
}

}  // namespace
}  // namespace lane
