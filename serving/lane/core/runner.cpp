// Runner: runs, retries of those that failed together, and who completes what; as the functions of
// the same purpose in serving/batcher.py.
#include "runner.h"

#include <algorithm>
#include <utility>

namespace lane {
namespace {

Refusal model_failed(std::exception_ptr cause) {
  Refusal refusal{Code::internal, Reason::failed, "the model failed; the server's log says why"};
  refusal.cause = std::move(cause);
  return refusal;
}

// Counts a run as busy while it lasts, however it ends.
class Busy {
 public:
  explicit Busy(BatchObserver& observer) : observer_(observer) { observer_.busy(1); }
  ~Busy() { observer_.busy(-1); }
  Busy(const Busy&) = delete;
  Busy& operator=(const Busy&) = delete;

 private:
  BatchObserver& observer_;
};

}  // namespace

Refusal too_late(const char* details) {
  return {Code::deadline_exceeded, Reason::deadline, details};
}

Runner::Runner(std::shared_ptr<Executor> executor, std::shared_ptr<BatchObserver> observer,
               std::string name, std::vector<std::int64_t> buckets)
    : executor_(std::move(executor)),
      observer_(std::move(observer)),
      name_(std::move(name)),
      buckets_(std::move(buckets)) {}

std::vector<Ran> Runner::run(std::vector<RequestPtr> requests) {
  std::vector<Ran> runs(1);
  runs[0].requests = std::move(requests);
  const std::exception_ptr why = try_run(runs[0]);
  if (!why) return runs;
  if (runs[0].requests.size() == 1) {
    runs[0].refusal = model_failed(why);
    return runs;
  }
  return run_again(std::move(runs[0].requests), text_of(why));
}

std::vector<Ran> Runner::run_again(std::vector<RequestPtr> requests, const std::string& why) {
  std::vector<Ran> runs;
  const std::size_t count = requests.size();
  for (auto& request : requests) {
    if (request->settled()) continue;
    std::vector<RequestPtr> alone{std::move(request)};
    if (alone[0]->deadline > now()) {
      runs.push_back(std::move(run(std::move(alone))[0]));
    } else {
      runs.emplace_back().requests = std::move(alone);
      runs.back().refusal = too_late("the deadline passed while its batch failed");
    }
  }
  const auto failed = [](const Ran& ran) { return ran.refusal.cause != nullptr; };
  if (std::none_of(runs.begin(), runs.end(), failed)) {
    observer_->failed(name_ + ": " + std::to_string(count) +
                     " requests failed together, none by itself: " + why);
  }
  return runs;
}

// What the run threw; nothing where it gave an answer.
std::exception_ptr Runner::try_run(Ran& ran) {
  const Busy busy(*observer_);
  try {
    ran.run = run_batch(*executor_, ran.requests, buckets_);
  } catch (...) {  // whatever it is: the thread must live
    return std::current_exception();
  }
  seconds_per_request_ = ran.run.stages.seconds() / static_cast<double>(ran.requests.size());
  return nullptr;
}

void Runner::hand_out(const Ran& ran) {
  std::vector<std::pair<Request*, std::int64_t>> claimed;  // and its first row
  claimed.reserve(ran.requests.size());
  Execution execution;
  execution.stages = ran.run.stages;
  std::int64_t first = 0;
  for (const auto& request : ran.requests) {
    if (!request->background) execution.rows += request->rows;
    if (request->claim()) {
      claimed.emplace_back(request.get(), first);
      if (!request->background) ran.tell(*request, execution);
    }
    first += request->rows;
  }
  if (ran.run.outputs && !execution.request_rows.empty()) observer_->ran(execution);
  for (const auto& [request, row] : claimed) request->complete(ran.outcome(*request, row));
  observer_->handed_out();
}

void Runner::refuse(const std::vector<RequestPtr>& requests, const Refusal& refusal) {
  if (requests.empty()) return;
  for (const auto& request : requests) {
    if (request->claim()) request->complete(refusal);
  }
  observer_->handed_out();
}

}  // namespace lane
