// RequestQueue: the order of those who wait; a line-by-line copy of serving/request_queue.py.
#include "request_queue.h"

#include <algorithm>
#include <iterator>
#include <stdexcept>
#include <string>
#include <utility>

namespace lane {
namespace {

constexpr Seconds kNever = std::numeric_limits<Seconds>::infinity();

// Whether both can be in one batch; mostly they share the pointer.
bool same_layout(const LayoutPtr& one, const LayoutPtr& other) {
  return one == other || (one && other && *one == *other);
}

}  // namespace

RequestQueue::RequestQueue(int levels)
    : levels_(static_cast<std::size_t>(std::max(levels, 1)) + 1) {}

void RequestQueue::append(RequestPtr request) {
  auto* level = level_of(*request);
  if (!level) throw std::out_of_range("no priority level " + std::to_string(request->priority));
  ++count_;
  rows_ += request->rows;
  newest_layout_ = request->layout;
  earliest_deadline_ = std::min(earliest_deadline_, request->deadline);
  level->push_back(std::move(request));
}

RequestPtr RequestQueue::discard(const Request& request) {
  auto* level = level_of(request);
  if (!level) return nullptr;
  const auto is_it = [&](const RequestPtr& each) { return each.get() == &request; };
  const auto found = std::find_if(level->begin(), level->end(), is_it);
  if (found == level->end()) return nullptr;
  RequestPtr discarded = std::move(*found);
  level->erase(found);
  --count_;
  rows_ -= discarded->rows;
  return discarded;
}

std::vector<RequestPtr> RequestQueue::expire(Seconds now) {
  std::vector<RequestPtr> expired;
  if (now < earliest_deadline_) return expired;
  earliest_deadline_ = kNever;
  for (auto& level : levels_) {
    std::deque<RequestPtr> kept;
    for (auto& request : level) {
      const bool late = request->deadline <= now;
      if (!late) earliest_deadline_ = std::min(earliest_deadline_, request->deadline);
      if (late) rows_ -= request->rows;
      if (late) expired.push_back(std::move(request));
      else kept.push_back(std::move(request));
    }
    level = std::move(kept);
  }
  count_ -= expired.size();
  return expired;
}

bool RequestQueue::closes_batch(const Request& request, std::int64_t max_rows) const {
  return rows_ + request.rows >= max_rows ||
         (count_ > 0 && !same_layout(request.layout, newest_layout_));
}

Seconds RequestQueue::first_arrival(std::int64_t max_rows) const {
  if (rows_ >= max_rows) return -kNever;
  Seconds first = kNever;
  const Request* front = nullptr;
  for (const auto& level : levels_) {
    for (const auto& request : level) {
      if (!front) front = request.get();
      if (!same_layout(request->layout, front->layout)) return -kNever;
      first = std::min(first, request->arrived);
    }
  }
  return first;
}

std::vector<RequestPtr> RequestQueue::take(std::int64_t max_rows) {
  std::vector<RequestPtr> batch;
  std::int64_t rows = 0;
  const auto fits = [&](const Request& request) {
    return batch.empty() || (rows + request.rows <= max_rows &&
                             same_layout(request.layout, batch.front()->layout));
  };
  for (auto& level : levels_) {
    while (!level.empty() && fits(*level.front())) {
      rows += level.front()->rows;
      batch.push_back(std::move(level.front()));
      level.pop_front();
    }
    if (!level.empty()) break;  // who does not fit is not overtaken
  }
  count_ -= batch.size();
  rows_ -= rows;
  return batch;
}

std::vector<RequestPtr> RequestQueue::take_all() {
  std::vector<RequestPtr> all;
  all.reserve(count_);
  for (auto& level : levels_) {
    std::move(level.begin(), level.end(), std::back_inserter(all));
    level.clear();
  }
  count_ = 0;
  rows_ = 0;
  return all;
}

std::deque<RequestPtr>* RequestQueue::level_of(const Request& request) {
  if (request.background) return &levels_.back();
  const bool known = request.priority >= 0 &&
                     static_cast<std::size_t>(request.priority) + 1 < levels_.size();
  return known ? &levels_[static_cast<std::size_t>(request.priority)] : nullptr;
}

}  // namespace lane
