// Batcher: the queue's lock, and the threads that take batches and have them run. The clauses are
// those of serving/batcher.py, under the same names where there is one.
#include "batcher.h"

#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <iterator>
#include <limits>
#include <utility>

#include "runner.h"

namespace lane {
namespace {

constexpr Seconds kLongestWait = 3600;    // at a time: more may not fit into the clock's integer
constexpr Seconds kNever = std::numeric_limits<Seconds>::infinity();

std::chrono::steady_clock::time_point moment(Seconds at) {
  const std::chrono::duration<double> seconds(std::min(at, now() + kLongestWait));
  using Clock = std::chrono::steady_clock;  // CLOCK_MONOTONIC, as `now` is
  return Clock::time_point(std::chrono::duration_cast<Clock::duration>(seconds));
}

Refusal unloaded(const char* details) {
  return {Code::unavailable, Reason::model_not_ready, details, -1, true};
}

BatcherOptions sorted(BatcherOptions options) {
  std::sort(options.buckets.begin(), options.buckets.end());
  return options;
}

// What `top` and debuggers show, from the moment there is a batcher; Linux has room for 15
// characters.
void name_thread(std::thread& thread, const std::string& name, int number) {
  const std::string ending = "-" + std::to_string(number);
  const std::string text = name.substr(0, 15 - std::min<std::size_t>(ending.size(), 15)) + ending;
  pthread_setname_np(thread.native_handle(), text.c_str());
}

}  // namespace

// All but the threads themselves, each of which keeps it alive until it ends.
struct Batcher::State {
  State(std::shared_ptr<Executor> executor_, BatcherOptions options_,
        std::shared_ptr<BatchObserver> observer_)
      : observer(std::move(observer_)),
        options(std::move(options_)),
        runner(std::move(executor_), observer, options.name, options.buckets),
        queue(options.priority_levels),
        free_instances(options.instance_count),
        living(options.instance_count + 1) {}

  std::optional<Refusal> submit(RequestPtr request, bool wake);
  void wake();
  void withdraw(const Request& request);
  bool close(Seconds timeout);
  void serve();

  // What a thread that looked has to do.
  struct Turn {
    std::vector<RequestPtr> batch;  // to run, or
    std::vector<RequestPtr> late;   // to tell, or
    bool over = false;              // nothing, ever
  };

  // --- the lock is held ---
  void append(RequestPtr request);
  void make_room();
  void expire(Seconds at);
  Refusal full() const;
  bool has_work() const;
  Seconds look(Turn& turn);
  Seconds closes_at() const;
  std::vector<RequestPtr> take();
  void tell_waiting();

  // --- it is not: callers' and executors' code runs ---
  bool serve_one();
  std::vector<RequestPtr> next();
  Turn wait_for_turn();

  const std::shared_ptr<BatchObserver> observer;
  const BatcherOptions options;
  Runner runner;

  mutable std::mutex lock;
  std::condition_variable work;   // for threads: there may be something to do
  std::condition_variable ended;  // for `close`: no thread is left
  // All below is the lock's.
  RequestQueue queue;
  std::vector<RequestPtr> expired;  // out of the queue, and still to be told
  std::size_t told_waiting = 0;
  int free_instances;
  int unanswered = 0;  // batches taken whose answers are not all out
  int living;          // threads
  bool owed = false;   // something was submitted for which no thread was woken yet
  bool closed = false;
};

std::optional<Refusal> Batcher::State::submit(RequestPtr request, bool wake) {
  if (request->rows > options.max_batch_size) {
    return invalid_input("the request has " + std::to_string(request->rows) + " rows, at most " +
                         std::to_string(options.max_batch_size) + " are allowed");
  }
  std::optional<Refusal> refusal;
  bool notify = false;
  {
    const std::lock_guard<std::mutex> guard(lock);
    if (closed) return unloaded("the version is being unloaded");
    if (queue.callers() >= options.max_queue_size) make_room();
    if (queue.callers() >= options.max_queue_size) {
      refusal = full();
    } else if (!request->settled()) {  // from here on, who claims it withdraws it
      append(std::move(request));
    }
    if (wake) notify = std::exchange(owed, false) && has_work();
  }
  if (notify) work.notify_one();  // not under the lock, which it would have to wait for
  return refusal;
}

void Batcher::State::wake() {
  bool notify = false;
  {
    const std::lock_guard<std::mutex> guard(lock);
    notify = std::exchange(owed, false) && has_work();
  }
  if (notify) work.notify_one();
}

void Batcher::State::withdraw(const Request& request) {
  RequestPtr discarded;  // let go after the lock
  const std::lock_guard<std::mutex> guard(lock);
  discarded = queue.discard(request);
  tell_waiting();
}

bool Batcher::State::close(Seconds timeout) {
  const Seconds end = now() + timeout;
  std::unique_lock<std::mutex> guard(lock);
  closed = true;
  work.notify_all();
  while (living && now() < end) ended.wait_until(guard, moment(end));
  const bool finished = !queue.count() && !unanswered;
  const auto left = queue.take_all();
  tell_waiting();
  work.notify_all();
  guard.unlock();
  runner.refuse(left, unloaded("the version was unloaded before the request could run"));
  return finished;
}

// Queues it, and notes where it can make a difference to a thread that waits.
void Batcher::State::append(RequestPtr request) {
  // When others are queued, a thread was woken for the first. It takes what is there, or waits for
  // the delay to end; then it must hear that the batch can grow no more.
  const bool closes =
      options.max_queue_delay > 0 && queue.closes_batch(*request, options.max_batch_size);
  queue.append(std::move(request));
  tell_waiting();
  owed |= queue.count() == 1 || closes;
}

void Batcher::State::make_room() {
  expire(now());
  owed |= !expired.empty();
}

// Drops what has expired, for a thread to tell.
void Batcher::State::expire(Seconds at) {
  auto late = queue.expire(at);
  if (late.empty()) return;
  std::move(late.begin(), late.end(), std::back_inserter(expired));
  tell_waiting();
}

// Try again when half of the queue will have run, if requests go on taking that long.
Refusal Batcher::State::full() const {
  const double seconds = static_cast<double>(queue.callers()) / 2 * runner.seconds_per_request() /
                         options.instance_count;
  return {Code::resource_exhausted, Reason::queue_full,
          std::to_string(options.max_queue_size) + " requests are already waiting",
          std::max(kShortestRetry, seconds)};
}

// Whether a waiting thread should look. If none waits, all is well: each looks before it does.
bool Batcher::State::has_work() const {
  return !expired.empty() || (queue.count() && free_instances);
}

// When a batch may be taken: -infinity for now, infinity while none waits or no instance is free.
Seconds Batcher::State::closes_at() const {
  if (!queue.count() || !free_instances) return kNever;
  if (options.max_queue_delay <= 0 || closed) return -kNever;
  return queue.first_arrival(options.max_batch_size) + options.max_queue_delay;
}

// The next batch and an instance for it.
std::vector<RequestPtr> Batcher::State::take() {
  auto batch = queue.take(options.max_batch_size);
  tell_waiting();
  --free_instances;
  ++unanswered;
  return batch;
}

void Batcher::State::tell_waiting() {
  if (queue.callers() == told_waiting) return;
  told_waiting = queue.callers();
  observer->waiting(told_waiting);
}

void Batcher::State::serve() {
  while (serve_one()) {
  }
  std::shared_ptr<Executor> last;  // let go after the lock; it may refer to who owns the batcher
  const std::lock_guard<std::mutex> guard(lock);
  if (--living == 0) last = runner.let_go();
  ended.notify_all();
}

// Waits for a batch, runs it and answers; false when the batcher is closed and empty. A function of
// its own, so that a waiting thread keeps no batch alive.
bool Batcher::State::serve_one() {
  auto batch = next();
  if (batch.empty()) return false;
  const auto runs = runner.run(std::move(batch));
  bool notify = false;
  {
    const std::lock_guard<std::mutex> guard(lock);
    ++free_instances;
    notify = has_work();
  }
  if (notify) work.notify_one();
  for (const auto& ran : runs) runner.hand_out(ran);
  const std::lock_guard<std::mutex> guard(lock);
  --unanswered;
  return true;
}

// Waits for an instance and a batch and takes both; an empty batch when all is over. Those that
// expired are told meanwhile, but no batch waits for that.
std::vector<RequestPtr> Batcher::State::next() {
  while (true) {
    Turn turn = wait_for_turn();
    if (turn.over || !turn.batch.empty()) return std::move(turn.batch);
    runner.refuse(turn.late, too_late("the deadline passed before the request could run"));
  }
}

Batcher::State::Turn Batcher::State::wait_for_turn() {
  Turn turn;
  bool notify = false;
  {
    std::unique_lock<std::mutex> guard(lock);
    for (Seconds until = look(turn); until > -kNever; until = look(turn)) {
      work.wait_until(guard, moment(until));
    }
    notify = has_work();
  }
  if (turn.over) work.notify_all();  // for the others, too
  if (notify) work.notify_one();     // to wait in this one's place
  return turn;
}

// Fills in what is to be done now, and returns -infinity; otherwise until when to wait.
Seconds Batcher::State::look(Turn& turn) {
  const Seconds looked = now();
  expire(looked);
  const Seconds closes = closes_at();
  if (closes <= looked) {
    turn.batch = take();
  } else if (!expired.empty()) {
    turn.late.swap(expired);
  } else if (closed && !queue.count()) {
    turn.over = true;
  } else {
    return closes;
  }
  return -kNever;
}

Batcher::Batcher(std::shared_ptr<Executor> executor, BatcherOptions options,
                 std::shared_ptr<BatchObserver> observer)
    : options_(sorted(std::move(options))),
      state_(std::make_shared<State>(std::move(executor), options_, std::move(observer))) {
  try {
    start();
  } catch (...) {  // the system has no thread left: those that run must end
    close(0);
    join();
    throw;
  }
}

// One thread more than there are instances: while one gives out its answers, the next batch runs.
void Batcher::start() {
  threads_.reserve(static_cast<std::size_t>(options_.instance_count) + 1);
  for (int number = 0; number <= options_.instance_count; ++number) {
    threads_.emplace_back([state = state_] { state->serve(); });
    name_thread(threads_.back(), state_->options.name, number);
    ids_.push_back(threads_.back().get_id());
  }
}

Batcher::~Batcher() {
  close(0);
  if (!on_own_thread()) join();
  // Where what a thread completed let go of the batcher, each ends by itself, and keeps its state.
  for (auto& thread : threads_) {
    if (thread.joinable()) thread.detach();
  }
}

std::optional<Refusal> Batcher::submit(RequestPtr request, bool wake) {
  return state_->submit(std::move(request), wake);
}

void Batcher::wake() { state_->wake(); }

void Batcher::withdraw(const Request& request) { state_->withdraw(request); }

bool Batcher::close(Seconds timeout) {
  const bool finished = state_->close(timeout);
  if (finished && !on_own_thread()) join();
  return finished;
}

std::size_t Batcher::pending() const {
  const std::lock_guard<std::mutex> guard(state_->lock);
  return state_->queue.callers();
}

bool Batcher::on_own_thread() const {
  return std::find(ids_.begin(), ids_.end(), std::this_thread::get_id()) != ids_.end();
}

void Batcher::join() {
  const std::lock_guard<std::mutex> guard(joining_);
  for (auto& thread : threads_) {
    if (thread.joinable()) thread.join();
  }
}

}  // namespace lane
