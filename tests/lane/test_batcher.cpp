// The batcher's contract, clause by clause, as tests/test_batcher.py has it.
#include <doctest/doctest.h>

#include <algorithm>
#include <future>
#include <thread>

#include "batching.h"

namespace lane {
namespace {

using Batches = std::vector<Values>;

// Remembers what it was told.
class Witness : public BatchObserver {
 public:
  void ran(const Execution& execution) override {
    note("ran");
    const std::lock_guard<std::mutex> guard(lock_);
    executions_.push_back(execution);
  }
  void waiting(std::size_t count) override {
    const std::lock_guard<std::mutex> guard(lock_);
    waiting_.push_back(count);
  }
  void busy(int more) override { busy_ += more; }
  void handed_out() override { note("handed out"); }
  void failed(const std::string& warning) override { note(warning); }

  void note(const std::string& what) {
    const std::lock_guard<std::mutex> guard(lock_);
    order_.push_back(what);
    noted_.notify_all();
  }
  void wait_until_noted(std::size_t count) {
    std::unique_lock<std::mutex> guard(lock_);
    const std::chrono::duration<double> most(kPatience);
    CHECK(noted_.wait_for(guard, most, [&] { return order_.size() >= count; }));
  }
  std::vector<std::string> order() const {
    const std::lock_guard<std::mutex> guard(lock_);
    return order_;
  }
  std::vector<Execution> executions() const {
    const std::lock_guard<std::mutex> guard(lock_);
    return executions_;
  }
  std::vector<std::size_t> waiting_told() const {
    const std::lock_guard<std::mutex> guard(lock_);
    return waiting_;
  }
  int busy_now() const { return busy_; }

 private:
  mutable std::mutex lock_;
  std::condition_variable noted_;
  std::vector<std::string> order_;
  std::vector<Execution> executions_;
  std::vector<std::size_t> waiting_;
  std::atomic<int> busy_{0};
};

BatcherOptions up_to(std::int64_t rows) {
  BatcherOptions options;
  options.max_batch_size = rows;
  return options;
}

// A batcher over a model that doubles.
struct Doubling {
  explicit Doubling(BatcherOptions options, std::shared_ptr<Doubler> model = nullptr)
      : doubler(model ? std::move(model) : std::make_shared<Doubler>()),
        batcher(std::make_unique<Batcher>(doubler, std::move(options), witness)) {}
  ~Doubling() { doubler->release(); }

  AskedPtr submit(AskedPtr request) {
    const auto refusal = batcher->submit(request);
    CHECK_FALSE(refusal.has_value());
    return request;
  }
  AskedPtr ask(Values values) { return submit(make_request(std::move(values))); }
  AskedPtr ask_until(Values values, Seconds deadline) {
    auto request = make_request(std::move(values));
    request->deadline = deadline;
    return submit(std::move(request));
  }
  AskedPtr ask_by(Values values, int priority, bool background = false) {
    auto request = make_request(std::move(values));
    request->priority = priority;
    request->background = background;
    return submit(std::move(request));
  }
  // Keeps one instance busy until the doubler is released.
  AskedPtr occupy() {
    doubler->hold();
    auto request = ask({0});
    REQUIRE(doubler->wait_until_entered());
    return request;
  }
  // Lets the run that is held end, and waits until the next is held.
  void hold_next() {
    doubler->release_those_that_run();
    REQUIRE(doubler->wait_until_entered());
  }
  void finish() { CHECK(batcher->close(kPatience)); }

  std::shared_ptr<Witness> witness = std::make_shared<Witness>();
  std::shared_ptr<Doubler> doubler;
  std::unique_ptr<Batcher> batcher;
};

void wait_until(Seconds at) {
  while (now() < at) std::this_thread::sleep_for(std::chrono::duration<double>(at - now()));
}

// Lets a thread see what was submitted, and wait for more. The contract holds if it has not.
void after_a_while() { wait_until(now() + 0.02); }

// Batches

TEST_CASE("a lone request runs at once by itself") {
  Doubling doubling(up_to(4));
  const auto asked = doubling.ask({1, 2});
  CHECK(asked->doubled() == Values{2, 4});
  CHECK(asked->answer().stages.rows == 2);
  CHECK(doubling.doubler->batches() == Batches{{1, 2}});
}

TEST_CASE("requests that arrive while the instance is busy run together") {
  Doubling doubling(up_to(8));
  doubling.occupy();
  const std::vector<AskedPtr> asked{doubling.ask({1, 1.5}), doubling.ask({2, 2.5})};
  CHECK(doubling.batcher->pending() == 2);
  doubling.doubler->release();
  CHECK(asked[0]->doubled() == Values{2, 3});
  CHECK(asked[1]->doubled() == Values{4, 5});
  CHECK(asked[1]->answer().stages.rows == 4);
  CHECK(asked[0]->answer().outputs == asked[1]->answer().outputs);
  CHECK(doubling.doubler->batches() == Batches{{0}, {1, 1.5, 2, 2.5}});
  CHECK(doubling.batcher->pending() == 0);
}

TEST_CASE("a request that does not fit waits for the next batch in one piece") {
  Doubling doubling(up_to(4));
  doubling.occupy();
  for (const Values& values : Batches{{1, 1, 1}, {2, 2, 2}, {5}}) doubling.ask(values);
  doubling.doubler->release();
  doubling.finish();
  CHECK(doubling.doubler->batches() == Batches{{0}, {1, 1, 1}, {2, 2, 2, 5}});
}

TEST_CASE("a request larger than a batch is refused naming the limit") {
  Doubling doubling(up_to(4));
  const auto refusal = doubling.batcher->submit(make_request(Values(5)));
  REQUIRE(refusal.has_value());
  CHECK(refusal->code == Code::invalid_argument);
  CHECK(refusal->reason == Reason::invalid_input);
  CHECK(refusal->details == "the request has 5 rows, at most 4 are allowed");
  CHECK(doubling.ask({1, 1, 1, 1})->doubled() == Values{2, 2, 2, 2});
}

TEST_CASE("requests of different layouts do not share a batch") {
  Doubling doubling(up_to(8));
  doubling.occupy();
  const auto wide = doubling.submit(make_request({1, 1}, 2));
  const auto asked = doubling.ask({3});
  doubling.doubler->release();
  CHECK(wide->doubled() == Values{2, 2});
  CHECK(asked->doubled() == Values{6});
  CHECK(doubling.doubler->batches() == Batches{{0}, {1, 1}, {3}});
}

TEST_CASE("what is submitted quietly waits for a wake, and then runs together") {
  Doubling doubling(up_to(8));
  const std::vector<AskedPtr> asked{make_request({1}), make_request({2}), make_request({3})};
  for (const auto& each : asked) CHECK_FALSE(doubling.batcher->submit(each, false).has_value());
  doubling.batcher->wake();
  CHECK(asked[2]->doubled() == Values{6});
  // One batch, unless a thread had not yet begun to wait when the first came.
  doubling.finish();
  Values all;
  for (const auto& batch : doubling.doubler->batches()) {
    all.insert(all.end(), batch.begin(), batch.end());
  }
  CHECK(all == Values{1, 2, 3});
}

// Delay

TEST_CASE("with a delay a batch runs as soon as it is full") {
  auto options = up_to(3);
  options.max_queue_delay = 6 * kPatience;
  Doubling doubling(options);
  doubling.ask({1});
  doubling.ask({2});
  after_a_while();
  CHECK(doubling.ask({3})->doubled() == Values{6});
  CHECK(doubling.doubler->batches() == Batches{{1, 2, 3}});
}

TEST_CASE("with a delay a batch runs as soon as the next has another layout") {
  auto options = up_to(8);
  options.max_queue_delay = 6 * kPatience;
  Doubling doubling(options);
  const auto asked = doubling.ask({1});
  after_a_while();
  const auto other = doubling.submit(make_request({1, 1}, 2));
  CHECK(asked->doubled() == Values{2});
  CHECK(doubling.batcher->pending() == 1);
  doubling.finish();
  CHECK(other->doubled() == Values{2, 2});
}

TEST_CASE("with a delay a batch runs that long after its first request arrived") {
  auto options = up_to(3);
  options.max_queue_delay = 0.2;
  Doubling doubling(options);
  const auto first = doubling.ask({1}), second = doubling.ask({2});
  CHECK(first->answer().queue_seconds >= 0.2);
  CHECK(second->answer().queue_seconds <= first->answer().queue_seconds);
  CHECK(doubling.doubler->batches() == Batches{{1, 2}});
  options.max_queue_delay = 6 * kPatience;
  Doubling patient(options);
  auto early = make_request({3});
  early->arrived = now() - 6 * kPatience;
  CHECK(patient.submit(early)->doubled() == Values{6});
}

TEST_CASE("with a delay what was cancelled makes room in the batch") {
  auto options = up_to(2);
  options.max_queue_delay = 6 * kPatience;
  Doubling doubling(options);
  doubling.ask({1})->cancel(*doubling.batcher);
  doubling.ask({2});
  CHECK(doubling.ask({3})->doubled() == Values{6});
  CHECK(doubling.doubler->batches() == Batches{{2, 3}});
}

// A full queue

TEST_CASE("a full queue refuses at once, and a cancelled request frees its place") {
  auto options = up_to(4);
  options.max_queue_size = 2;
  Doubling doubling(options);
  doubling.occupy();
  const std::vector<AskedPtr> asked{doubling.ask({1}), doubling.ask({2})};
  const auto refusal = doubling.batcher->submit(make_request({3}));
  REQUIRE(refusal.has_value());
  CHECK(refusal->code == Code::resource_exhausted);
  CHECK(refusal->reason == Reason::queue_full);
  CHECK(refusal->details == "2 requests are already waiting");
  CHECK(refusal->retry_after == 0.01);  // no batch has run yet, to say how long it takes
  asked[0]->cancel(*doubling.batcher);
  CHECK(doubling.batcher->pending() == 1);
  doubling.ask({4});
  CHECK(doubling.batcher->submit(make_request({5})).has_value());
  doubling.doubler->release();
  doubling.finish();
  CHECK(doubling.doubler->batches() == Batches{{0}, {2, 4}});
}

TEST_CASE("a refused caller is told when half of the queue will have run") {
  auto options = up_to(2);
  options.max_queue_size = 12;
  Doubling doubling(options);
  doubling.occupy();
  doubling.ask({1});
  const auto asked = doubling.ask({2});
  doubling.hold_next();
  wait_until(now() + 0.02);
  doubling.doubler->release();
  const Seconds seconds = asked->answer().stages.seconds() / 2;  // per request
  CHECK(seconds >= 0.01);
  doubling.occupy();
  for (int number = 0; number < 12; ++number) doubling.ask({1});
  const auto refusal = doubling.batcher->submit(make_request({3}));
  REQUIRE(refusal.has_value());
  CHECK(refusal->retry_after == doctest::Approx(6 * seconds));
}

TEST_CASE("an expired request frees its place in a full queue and is told while all is busy") {
  auto options = up_to(4);
  options.max_queue_size = 2;
  Doubling doubling(options);
  doubling.occupy();
  doubling.ask({1});
  const auto expired = doubling.ask_until({2}, now());
  doubling.ask({3});
  const Refusal refusal = expired->refusal();
  CHECK(refusal.code == Code::deadline_exceeded);
  CHECK(refusal.reason == Reason::deadline);
  CHECK(refusal.details == "the deadline passed before the request could run");
  CHECK(doubling.batcher->submit(make_request({4})).has_value());
  doubling.doubler->release();
  doubling.finish();
  CHECK(doubling.doubler->batches() == Batches{{0}, {1, 3}});
}

// Deadlines and cancellation

TEST_CASE("an expired request is dropped, leaves its room, and its mates are answered") {
  Doubling doubling(up_to(2));
  doubling.occupy();
  const auto before = doubling.ask_until({1}, now() + kPatience);
  const auto expired = doubling.ask_until({2}, now());
  const auto after = doubling.ask({3});
  doubling.doubler->release();
  CHECK(expired->refusal().code == Code::deadline_exceeded);
  CHECK(before->doubled() == Values{2});
  CHECK(after->doubled() == Values{6});
  CHECK(doubling.doubler->batches() == Batches{{0}, {1, 3}});
}

TEST_CASE("a request that comes too late never runs") {
  Doubling doubling(up_to(8));
  CHECK(doubling.ask_until({1}, now() - 1)->refusal().code == Code::deadline_exceeded);
  CHECK(doubling.ask({2})->doubled() == Values{4});
  CHECK(doubling.doubler->batches() == Batches{{2}});
}

TEST_CASE("a request cancelled while it waits is dropped, and its mates are answered") {
  Doubling doubling(up_to(8));
  doubling.occupy();
  const auto before = doubling.ask({1}), cancelled = doubling.ask({2}), after = doubling.ask({3});
  cancelled->cancel(*doubling.batcher);
  doubling.doubler->release();
  CHECK(before->doubled() == Values{2});
  CHECK(after->doubled() == Values{6});
  doubling.finish();
  CHECK(cancelled->outcomes().size() == 1);
  CHECK(doubling.doubler->batches() == Batches{{0}, {1, 3}});
}

TEST_CASE("a request cancelled while it runs is told so once, and its mates are answered") {
  Doubling doubling(up_to(8));
  doubling.occupy();
  const auto cancelled = doubling.ask({1}), mate = doubling.ask({2});
  doubling.hold_next();
  cancelled->cancel(*doubling.batcher);
  doubling.doubler->release();
  CHECK(mate->doubled() == Values{4});
  doubling.finish();
  CHECK(cancelled->outcomes().size() == 1);
  CHECK(cancelled->refusal().code == Code::cancelled);
  CHECK(doubling.doubler->batches() == Batches{{0}, {1, 2}});
}

TEST_CASE("a request that is settled before it is submitted is not queued") {
  Doubling doubling(up_to(8));
  const auto settled = make_request({1});
  settled->cancel(*doubling.batcher);
  doubling.submit(settled);
  CHECK(doubling.batcher->pending() == 0);
  CHECK(doubling.ask({2})->doubled() == Values{4});
  CHECK(doubling.doubler->batches() == Batches{{2}});
}

// The batcher's thread may just have it in its hands, and lets go of it soon.
bool expires(const std::weak_ptr<Asked>& kept) {
  const Seconds end = now() + kPatience;
  while (!kept.expired() && now() < end) std::this_thread::yield();
  return kept.expired();
}

TEST_CASE("neither a queue nor an idle batcher keeps what was cancelled or answered") {
  Doubling doubling(up_to(8));
  auto answered = doubling.ask({1});
  std::weak_ptr<Asked> kept = answered;
  CHECK(answered->doubled() == Values{2});
  answered.reset();
  CHECK(expires(kept));
  doubling.occupy();
  auto cancelled = doubling.ask({2});
  kept = cancelled;
  cancelled->cancel(*doubling.batcher);
  cancelled.reset();
  CHECK(expires(kept));
}

// Priorities, background

TEST_CASE("lower numbers go first, within a level who came first, and background after all") {
  auto options = up_to(2);
  options.priority_levels = 2;
  Doubling doubling(options);
  doubling.occupy();
  doubling.ask_by({9}, 0, true);
  for (const auto& [value, priority] : std::vector<std::pair<double, int>>{
           {1, 1}, {2, 1}, {3, 0}, {4, 0}, {5, 0}}) {
    doubling.ask_by({value}, priority);
  }
  doubling.doubler->release();
  doubling.finish();
  CHECK(doubling.doubler->batches() == Batches{{0}, {3, 4}, {5, 1}, {2, 9}});
}

TEST_CASE("background requests take no caller's place, and find none in a full queue") {
  auto options = up_to(1);
  options.max_queue_size = 2;
  Doubling doubling(options);
  doubling.occupy();
  doubling.ask_by({1}, 0, true);
  CHECK(doubling.batcher->pending() == 0);
  doubling.ask({2});
  doubling.ask({3});
  CHECK(doubling.batcher->pending() == 2);
  auto own = make_request({4});
  own->background = true;
  CHECK(doubling.batcher->submit(own).has_value());
  CHECK(doubling.batcher->submit(make_request({4})).has_value());
  CHECK(doubling.witness->waiting_told() == std::vector<std::size_t>{1, 0, 1, 2});
}

// Buckets, and rows out

TEST_CASE("a batch is filled up to the next bucket, and answers have their own rows") {
  auto options = up_to(8);
  options.buckets = {8, 4, 1};
  Doubling doubling(options);
  doubling.occupy();
  const auto first = doubling.ask({1, 2}), second = doubling.ask({3});
  doubling.doubler->release();
  CHECK(first->doubled() == Values{2, 4});
  CHECK(second->doubled() == Values{6});
  CHECK(first->answer().stages.rows == 3);
  CHECK(doubling.ask(Values(5, 5))->doubled() == Values(5, 10));
  CHECK(doubling.doubler->batches() == Batches{{0}, {1, 2, 3, 0}, {5, 5, 5, 5, 5, 0, 0, 0}});
}

// Gives an output of its own shape, whatever it is asked.
class Stubborn : public Doubler {
 public:
  explicit Stubborn(std::vector<std::int64_t> shape) : shape_(std::move(shape)) {}

 protected:
  Outputs answer(const Batch&, Values) override { return {{tensor_of("y", shape_, {1})}, {}}; }

 private:
  std::vector<std::int64_t> shape_;
};

TEST_CASE("a model that gives a scalar or another number of rows fails, and the log says so") {
  const std::vector<std::pair<std::vector<std::int64_t>, std::string>> shapes{
      {{}, "()"}, {{3}, "(3,)"}, {{2, 3}, "(2, 3)"}, {{0, 3}, "(0, 3)"}};
  for (const auto& [shape, text] : shapes) {
    Doubling doubling(up_to(4), std::make_shared<Stubborn>(shape));
    const Refusal refusal = doubling.ask({1, 2, 3, 4})->refusal();
    CHECK(refusal.code == Code::internal);
    CHECK(refusal.reason == Reason::failed);
    CHECK(refusal.details == "the model failed; the server's log says why");
    CHECK(text_of(refusal.cause) == "output 'y' has shape " + text + ", expected 4 rows");
  }
}

// Failures

TEST_CASE("a request that the model cannot run fails alone, and its cause is its own to log") {
  Doubling doubling(up_to(4));
  doubling.occupy();
  const auto good = doubling.ask({1}), bad = doubling.ask({13}), other = doubling.ask({2});
  doubling.doubler->release();
  CHECK(text_of(bad->refusal().cause) == "unlucky");
  CHECK(good->doubled() == Values{2});
  CHECK(other->doubled() == Values{4});
  CHECK(doubling.doubler->batches() == Batches{{0}, {1, 13, 2}, {1}, {13}, {2}});
  doubling.finish();
  CHECK(doubling.witness->busy_now() == 0);
  CHECK(doubling.witness->executions().size() == 3);  // not the failed one, nor that of the failed
  CHECK(doubling.witness->order().size() == 7);       // with four that were handed out; no warning
}

// Throws what is no exception where there is more than one row.
class Crowded : public Doubler {
 protected:
  Outputs answer(const Batch& batch, Values values) override {
    if (batch.rows > 1) throw 42;
    return Doubler::answer(batch, std::move(values));
  }
};

TEST_CASE("a batch that failed although none of its requests does is a warning") {
  auto options = up_to(4);
  options.name = "model-1";
  Doubling doubling(options, std::make_shared<Crowded>());
  doubling.occupy();
  const auto first = doubling.ask({1}), second = doubling.ask({2});
  doubling.doubler->release();
  CHECK(first->doubled() == Values{2});
  CHECK(second->doubled() == Values{4});
  const std::string expected =
      "model-1: 2 requests failed together, none by itself: an unknown exception";
  doubling.finish();
  const auto order = doubling.witness->order();
  CHECK(std::count(order.begin(), order.end(), expected) == 1);
}

TEST_CASE("of a failed batch only those run again who still want an answer") {
  Doubling doubling(up_to(8));
  doubling.occupy();
  const Seconds deadline = now() + 0.1;
  const auto bad = doubling.ask({13}), expiring = doubling.ask_until({1}, deadline);
  const auto cancelled = doubling.ask({2}), good = doubling.ask({3});
  doubling.hold_next();
  cancelled->cancel(*doubling.batcher);
  wait_until(deadline);
  doubling.doubler->release();
  CHECK(bad->refusal().code == Code::internal);
  CHECK(good->doubled() == Values{6});
  const std::string details = expiring->refusal().details;
  if (details == "the deadline passed while its batch failed") {
    CHECK(doubling.doubler->batches() == Batches{{0}, {13, 1, 2, 3}, {13}, {3}});
  } else {  // this machine took longer than that to begin the batch
    CHECK(details == "the deadline passed before the request could run");
  }
}

// Observing

TEST_CASE("the observer hears of callers' rows of a batch before its answers go out") {
  auto options = up_to(5);
  options.buckets = {5};
  Doubling doubling(options);
  const auto& witness = doubling.witness;
  const auto first = doubling.occupy();
  auto noting = make_request({1, 1});
  noting->on_complete = [&] { witness->note("answered"); };
  doubling.submit(noting);
  const auto cancelled = doubling.ask({2}), last = doubling.ask({3});
  const auto own = doubling.ask_by({4}, 0, true);
  doubling.hold_next();
  witness->wait_until_noted(2);
  cancelled->cancel(*doubling.batcher);
  doubling.doubler->release();
  const Answer answer = last->answer();
  doubling.finish();
  CHECK(witness->order() ==
        std::vector<std::string>{"ran", "handed out", "ran", "answered", "handed out"});
  const auto executions = witness->executions();
  REQUIRE(executions.size() == 2);
  CHECK(executions[0].rows == 1);
  CHECK(executions[0].queue_seconds == Values{first->answer().queue_seconds});
  CHECK(executions[1].rows == 4);  // with who left, who has no entry; without the background
  CHECK(executions[1].request_rows == std::vector<std::int64_t>{2, 1});
  CHECK(executions[1].request_seconds.back() == answer.request_seconds);
  CHECK(executions[1].stages.compute_infer == answer.stages.compute_infer);
  CHECK(own->answer().stages.rows == 5);
}

// Instances

TEST_CASE("as many batches run at once as there are instances, and never more") {
  auto options = up_to(1);
  options.instance_count = 2;
  Doubling doubling(options);
  doubling.doubler->hold();
  for (int number = 0; number < 6; ++number) doubling.ask({static_cast<double>(number)});
  REQUIRE(doubling.doubler->wait_until_entered());
  REQUIRE(doubling.doubler->wait_until_entered());
  CHECK(doubling.batcher->pending() == 4);
  CHECK(doubling.witness->busy_now() == 2);
  doubling.doubler->release();
  doubling.finish();
  CHECK(doubling.doubler->batches().size() == 6);
  CHECK(doubling.doubler->most_at_once() == 2);
}

TEST_CASE("the next batch runs while answers of the one before go out") {
  Doubling doubling(up_to(1));
  std::atomic<bool> entered{false};
  doubling.doubler->hold();
  auto slow = make_request({0});
  slow->on_complete = [&] { entered = doubling.doubler->wait_until_entered(); };
  doubling.submit(slow);
  REQUIRE(doubling.doubler->wait_until_entered());
  const auto following = doubling.ask({1});
  doubling.doubler->release();
  CHECK(following->doubled() == Values{2});
  doubling.finish();
  CHECK(entered);
}

// Closing

TEST_CASE("closing answers whatever is inside and refuses the rest") {
  auto options = up_to(1);
  options.max_queue_delay = 6 * kPatience;
  Doubling doubling(options);
  doubling.occupy();
  const auto asked = doubling.ask({1});
  auto closed = std::async([&] { return doubling.batcher->close(6 * kPatience); });
  const auto settled = make_request({0});  // which takes no place, but is refused once it is closed
  settled->claim();
  std::optional<Refusal> refusal;
  const Seconds end = now() + kPatience;
  while (!(refusal = doubling.batcher->submit(settled)) && now() < end) std::this_thread::yield();
  REQUIRE(refusal.has_value());
  CHECK(refusal->details == "the version is being unloaded");
  CHECK(refusal->closed);
  doubling.doubler->release();
  CHECK(closed.get());
  CHECK(asked->doubled() == Values{2});
}

TEST_CASE("closing without time fails what is queued but not what runs") {
  Doubling doubling(up_to(1));
  const auto running = doubling.occupy(), queued = doubling.ask({1});
  CHECK_FALSE(doubling.batcher->close(0));
  CHECK(queued->refusal().details == "the version was unloaded before the request could run");
  CHECK(queued->refusal().closed);
  CHECK(doubling.batcher->pending() == 0);
  doubling.doubler->release();
  CHECK(running->doubled() == Values{0});
  doubling.batcher.reset();
  CHECK(doubling.doubler->batches() == Batches{{0}});
}

TEST_CASE("closing an idle batcher needs no time, again neither") {
  auto options = up_to(1);
  options.instance_count = 3;
  Doubling doubling(options);
  CHECK(doubling.batcher->close(0));
  CHECK(doubling.batcher->close(0));
  CHECK(doubling.batcher->submit(make_request({1}))->closed);
}

TEST_CASE("all threads end when the last that waited is cancelled while closing") {
  Doubling doubling(up_to(1));
  doubling.occupy();
  const auto queued = doubling.ask({1});
  auto closed = std::async([&] { return doubling.batcher->close(6 * kPatience); });
  queued->cancel(*doubling.batcher);
  doubling.doubler->release();
  CHECK(closed.get());
  CHECK(doubling.doubler->batches() == Batches{{0}});
}

TEST_CASE("an answer may let go of the batcher that it comes from, or close it") {
  auto doubler = std::make_shared<Doubler>();
  auto batcher = std::make_shared<Batcher>(doubler, up_to(1));
  const auto last = make_request({1});
  Gate let_go;
  let_go.set(false);
  std::atomic<bool> closed{true};
  last->on_complete = [&, held = batcher]() mutable {
    CHECK(let_go.pass(0));
    closed = held->close(0);
    held.reset();
  };
  CHECK_FALSE(batcher->submit(last).has_value());
  batcher.reset();
  let_go.set(true);
  CHECK(last->doubled() == Values{2});
  CHECK_FALSE(closed);  // this answer was not yet out
}

}  // namespace
}  // namespace lane
