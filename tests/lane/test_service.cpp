// The service with a real batcher, which runs a small linear classifier.
#include "service.h"

#include <doctest/doctest.h>

#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstring>
#include <limits>
#include <mutex>
#include <optional>
#include <thread>

#include "batch.h"
#include "message.h"
#include "predictions.h"
#include "protobuf.h"

using namespace lane;

namespace {

constexpr auto kPatience = std::chrono::seconds(20);  // which a test that passes never takes
constexpr Seconds kNever = std::numeric_limits<Seconds>::infinity();
const std::string kKey = "a key for tests: 32 bytes or so.";

// How bright four pixels are: probabilities (N, 2) and labels (N,). It can be held, and can fail.
class Brightness : public Executor {
 public:
  Outputs run(std::shared_ptr<const Batch> batch) override {
    wait_until_open(std::to_integer<int>(*batch->inputs[0].begin()));
    std::vector<float> scores;
    std::vector<std::int64_t> labels;
    for (std::int64_t row = 0; row < batch->rows; ++row) {
      float light = 0;
      for (int i = 0; i < 4; ++i) {
        const std::byte pixel = batch->inputs[0].begin()[4 * row + i];
        light += static_cast<float>(std::to_integer<int>(pixel));
      }
      light /= 4 * 255;
      scores.insert(scores.end(), {1 - light, light});
      labels.push_back(light > 0.5F);
    }
    if (fails) throw RunFailed("the weights are gone");
    Outputs outputs{{tensor("probabilities", "FP32", {batch->rows, 2}, scores),
                     tensor("labels", "INT64", {batch->rows}, labels)},
                    {}};
    if (forgets) outputs.tensors.erase(outputs.tensors.begin());
    return outputs;
  }

  void hold() {
    const std::lock_guard<std::mutex> guard(lock_);
    open_ = false;
  }
  void open() {
    const std::lock_guard<std::mutex> guard(lock_);
    open_ = true;
    changed_.notify_all();
  }
  // Until a run has begun that is held.
  void wait_until_held() {
    std::unique_lock<std::mutex> guard(lock_);
    REQUIRE(changed_.wait_for(guard, kPatience, [&] { return held_ > 0; }));
  }

  // Of each run.
  std::vector<int> first_pixels() {
    const std::lock_guard<std::mutex> guard(lock_);
    return first_pixels_;
  }

  std::atomic<bool> fails{false};
  std::atomic<bool> forgets{false};  // an output

 private:
  template <typename Value>
  static Tensor tensor(const char* name, const char* datatype, std::vector<std::int64_t> shape,
                       const std::vector<Value>& values) {
    const auto* bytes = reinterpret_cast<const std::byte*>(values.data());
    return {name, datatype, std::move(shape), {bytes, bytes + values.size() * sizeof(Value)}};
  }

  void wait_until_open(int first_pixel) {
    std::unique_lock<std::mutex> guard(lock_);
    first_pixels_.push_back(first_pixel);
    ++held_;
    changed_.notify_all();
    changed_.wait(guard, [&] { return open_; });
    --held_;
  }

  std::mutex lock_;
  std::condition_variable changed_;
  bool open_ = true;
  int held_ = 0;
  std::vector<int> first_pixels_;
};

class Collected : public Outbox {
 public:
  void push(Finished finished) override {
    const std::lock_guard<std::mutex> guard(lock_);
    finished_.push_back(std::move(finished));
  }
  void flush() override {
    const std::lock_guard<std::mutex> guard(lock_);
    flushed_ = finished_.size();
    changed_.notify_all();
  }
  // All of them, once so many have come and may go out.
  std::vector<Finished> wait(std::size_t count) {
    std::unique_lock<std::mutex> guard(lock_);
    REQUIRE(changed_.wait_for(guard, kPatience, [&] { return flushed_ >= count; }));
    return finished_;
  }

 private:
  std::mutex lock_;
  std::condition_variable changed_;
  std::vector<Finished> finished_;
  std::size_t flushed_ = 0;
};

// Named numbers, as the counters' file has them; who counts keeps them by `refusals`, as threads of
// a batcher that ends may count for longer than a test lasts.
class Board : public std::enable_shared_from_this<Board> {
 public:
  Slots slots(const std::string& name, std::size_t count = 1) {
    const std::lock_guard<std::mutex> guard(lock_);
    auto& values = values_[name];
    if (values.size() < count) values.resize(count);
    return {values.data(), count};
  }
  std::size_t known() {
    const std::lock_guard<std::mutex> guard(lock_);
    return values_.size();
  }
  double at(const std::string& name, std::size_t index = 0) {
    double value;
    __atomic_load(slots(name, index + 1).values + index, &value, __ATOMIC_RELAXED);
    return value;
  }
  // Slots of requests by code and rejections by reason.
  auto refusals(const std::string& prefix) {
    return [self = shared_from_this(), prefix](Code code, Reason reason) {
      const auto number = [](auto value) { return std::to_string(static_cast<int>(value)); };
      return std::make_pair(self->slots(prefix + "code" + number(code)),
                            self->slots(prefix + "reason" + number(reason)));
    };
  }

 private:
  std::mutex lock_;
  std::map<std::string, std::vector<double>> values_;
};

class Counting : public BatchObserver {
 public:
  Counting(std::shared_ptr<ModelCounters> counters, std::shared_ptr<Outbox> outbox)
      : counters_(std::move(counters)), outbox_(std::move(outbox)) {}
  void ran(const Execution& execution) override { counters_->executed(execution); }
  void handed_out() override { outbox_->flush(); }

 private:
  std::shared_ptr<ModelCounters> counters_;
  std::shared_ptr<Outbox> outbox_;
};

struct Asking {
  std::string model = "brightness";
  std::string version;
  std::string id;
  std::vector<unsigned char> pixels = {255, 255, 255, 0};
  std::int64_t priority = 0;
  std::int64_t timeout = 0;  // microseconds
  std::string output;
};

void put(std::string& out, std::uint32_t field, std::string_view value) {
  Writer(out).text(bytes_tag(field), value);
}

void put_parameter(std::string& out, const char* name, std::int64_t value) {
  if (!value) return;
  std::string number, entry;
  Writer writer(number);
  writer.varint(varint_tag(2));
  writer.varint(static_cast<std::uint64_t>(value));
  put(entry, 1, name);
  put(entry, 2, number);
  put(out, 4, entry);
}

// A ModelInferRequest.
std::string message_of(const Asking& asking) {
  std::string message, input, shape, output;
  Writer(shape).varint(asking.pixels.size() / 4);
  Writer(shape).varint(4);
  put(input, 1, "images");
  put(input, 2, "UINT8");
  put(input, 3, shape);
  put(message, 1, asking.model);
  put(message, 2, asking.version);
  put(message, 3, asking.id);
  put_parameter(message, "priority", asking.priority);
  put_parameter(message, "timeout", asking.timeout);
  put(message, 5, input);
  put(output, 1, asking.output);
  put(message, 6, output);
  put(message, 7, {reinterpret_cast<const char*>(asking.pixels.data()), asking.pixels.size()});
  return message;
}

Signature signature() {
  return {"brightness",
          "3",
          {{"images", "UINT8", {-1, 4}}},
          {{"probabilities", "FP32", {-1, 2}}, {"labels", "INT64", {-1}}},
          {"dark", "light"}};
}

// The frame that answers one row with so much light, without ids.
std::string answer(const std::string& id, const std::vector<unsigned char>& pixels) {
  Batch batch;
  batch.rows = static_cast<std::int64_t>(pixels.size() / 4);
  batch.inputs = own_buffers(Layout{{{"images", "UINT8", {4}, 4}}}, batch.rows);
  std::memcpy(batch.inputs[0].begin(), pixels.data(), pixels.size());
  Answer answer;
  answer.outputs =
      std::make_shared<const Outputs>(Brightness().run(std::make_shared<const Batch>(batch)));
  answer.rows = batch.rows;
  return encode(signature(), id, {0, 1}, answer, std::nullopt);
}

struct World {
  explicit World(BatcherOptions given = {}, bool ids = false) {
    ServiceOptions service_options;
    service_options.room = 3;
    service_options.priority_levels = given.priority_levels;
    service_options.prediction_ids = ids;
    service_options.failed = [this](const Fault& fault) {
      const std::lock_guard<std::mutex> guard(lock);
      faults.push_back(fault);
    };
    const ServiceSeries series{board->refusals(""), board->slots("bytes"), board->slots("inside"),
                               {}};
    service = std::make_unique<InferService>(service_options, outbox,
                                             std::make_shared<const Signer>(kKey), series);
    options = given;
    serve();
  }

  // Makes the model anew and routes to it.
  void serve() {
    const PredictionPlan plan{"labels", "probabilities", "images", 1};
    batcher = std::make_shared<Batcher>(std::make_shared<Predicting>(executor, plan), options,
                                        std::make_shared<Counting>(counters, outbox));
    const auto served = std::make_shared<ServedModel>(signature(), batcher, counters);
    service->set_routes({{{"brightness", ""}, served}, {{"brightness", "3"}, served}});
  }

  // The model lacks an output from now on, and nobody looks for classes in it.
  void forget_an_output() {
    executor->forgets = true;
    batcher = std::make_shared<Batcher>(executor, BatcherOptions(),
                                        std::make_shared<Counting>(counters, outbox));
    const auto served = std::make_shared<ServedModel>(signature(), batcher, counters);
    service->set_routes({{{"brightness", ""}, served}});
  }

  std::shared_ptr<ModelCounters> make_counters() {
    ModelSeries series;
    series.answered = board->slots("answered");
    series.request_bytes = board->slots("request bytes");
    series.response_bytes = board->slots("response bytes");
    series.kept = board->slots("kept", 4);
    series.predictions = {board->slots("dark"), board->slots("light")};
    series.predicted = board->slots("predicted", 2);
    series.refusal = board->refusals("model ");
    return std::make_shared<ModelCounters>(series);
  }

  Submitted ask(const Asking& asking = {}, Seconds deadline = kNever, std::string_view id = {}) {
    const CallId call{7, next += 2};
    auto submitted = service->submit(call, message_of(asking), now(), deadline, id);
    service->wake();
    return submitted;
  }

  // Asks something that keeps the batcher's only instance.
  Submitted ask_and_hold() {
    executor->hold();
    auto submitted = ask();
    executor->wait_until_held();
    return submitted;
  }

  // What came of the one request.
  Reply reply() { return std::get<Reply>(outbox->wait(1)[0].result); }
  Refusal refusal() { return std::get<Refusal>(outbox->wait(1)[0].result); }

  // Batches' threads say that a call is over after they have pushed its answer.
  void wait_until_idle() const {
    while (service->in_flight()) std::this_thread::yield();
  }

  std::mutex lock;
  std::vector<Fault> faults;
  std::shared_ptr<Board> board = std::make_shared<Board>();
  std::shared_ptr<Collected> outbox = std::make_shared<Collected>();
  std::shared_ptr<ModelCounters> counters = make_counters();
  std::shared_ptr<Brightness> executor = std::make_shared<Brightness>();
  BatcherOptions options;
  std::unique_ptr<InferService> service;
  std::shared_ptr<Batcher> batcher;
  std::int32_t next = -1;
};

std::string code(Code value) { return "model code" + std::to_string(static_cast<int>(value)); }
std::string reason(Reason value) {
  return "model reason" + std::to_string(static_cast<int>(value));
}

}  // namespace

TEST_CASE("a request is answered with what the model says of its rows, and is counted") {
  BatcherOptions options;
  options.max_batch_size = 4;
  World world(options);
  Asking asking;
  asking.id = "mine";
  asking.pixels = {255, 255, 255, 0, 0, 0, 0, 255};
  CHECK(world.ask(asking).what == Submitted::What::taken);
  const Reply reply = world.reply();
  CHECK(reply.message == answer("mine", asking.pixels));
  CHECK(reply.version == "3");
  CHECK(reply.stages.rows == 2);
  CHECK(world.outbox->wait(1)[0].call.stream == 1);
  world.wait_until_idle();
  CHECK(world.board->at("inside") == 0);
  CHECK(world.board->at("answered") == 1);
  CHECK(world.board->at("request bytes") == static_cast<double>(message_of(asking).size()));
  CHECK(world.board->at("response bytes") == static_cast<double>(reply.message.size() - 5));
  CHECK(world.board->at("dark") == 1);
  CHECK(world.board->at("light") == 1);
}

TEST_CASE("an answer carries an id for each row where ids are on") {
  World world({}, true);
  world.ask();
  const std::string frame = world.reply().message;
  const std::string key = "prediction_ids";
  const std::size_t at = frame.find(key);
  REQUIRE(at != std::string::npos);
  // Then tag and length of the parameter, and of its text: 22 bytes of fields, 12 of the origin
  // "3/brightness" and 16 of the signature are 67 characters.
  CHECK(frame.substr(at + key.size(), 4) == std::string("\x12\x45\x1a\x43"));
  CHECK(frame.substr(at + key.size() + 4, 2) == "AQ");
  CHECK(answer("", {255, 255, 255, 0}).find(key) == std::string::npos);
}

TEST_CASE("what the lane does not answer itself is passed on as it came") {
  World world;
  Asking unknown, old;
  unknown.model = "other";
  old.version = "2";
  for (const std::string& message :
       {message_of(unknown), message_of(old), std::string(), std::string("\xff\xff")}) {
    const auto submitted = world.service->submit({1, 1}, message, now(), kNever);
    CHECK(submitted.what == Submitted::What::pass_on);
    CHECK(submitted.message == message);
  }
  CHECK(world.service->in_flight() == 0);
}

TEST_CASE("one request in so many of a model is passed on to be traced, and all others are taken") {
  World world;
  const auto traced = [&] {
    const Submitted submitted = world.ask();
    const bool passed_on = submitted.what == Submitted::What::pass_on;
    CHECK(submitted.traced == passed_on);
    return passed_on;
  };
  world.service->set_trace_rates({{"", 3}});
  CHECK(traced());
  CHECK(!traced());
  CHECK(!traced());
  CHECK(traced());
  world.service->set_trace_rates({{"", 1}, {"other", 0}});
  CHECK(traced());
  CHECK(traced());
  world.service->set_trace_rates({{"", 0}});
  CHECK(!traced());
}

TEST_CASE("a version can be asked for by its number") {
  World world;
  Asking asking;
  asking.version = "3";
  CHECK(world.ask(asking).what == Submitted::What::taken);
  CHECK(world.reply().version == "3");
}

TEST_CASE("a request that fails the checks is refused at once, and counted as the model's") {
  World world;
  Asking asking;
  asking.output = "nothing";
  const auto submitted = world.ask(asking);
  CHECK(submitted.what == Submitted::What::refused);
  CHECK(submitted.refusal.code == Code::invalid_argument);
  CHECK(submitted.refusal.details ==
        "output 'nothing' is unknown; there is 'probabilities', 'labels'");
  CHECK(world.service->in_flight() == 0);
  CHECK(world.board->at(code(Code::invalid_argument)) == 1);
  CHECK(world.board->at(reason(Reason::invalid_input)) == 1);
  CHECK(world.board->at("request bytes") == static_cast<double>(message_of(asking).size()));
}

TEST_CASE("a refusal's text has at most a thousand characters") {
  World world;
  Asking asking;
  asking.output = std::string(2000, 'x');
  CHECK(world.ask(asking).refusal.details == "output '" + std::string(992, 'x'));
}

TEST_CASE("a request of more rows than a batch may have is refused") {
  World world;
  Asking asking;
  asking.pixels.resize(8);
  const auto submitted = world.ask(asking);
  CHECK(submitted.what == Submitted::What::refused);
  CHECK(submitted.refusal.details == "the request has 2 rows, at most 1 are allowed");
  CHECK(world.service->in_flight() == 0);
  CHECK(world.board->at("inside") == 0);
}

TEST_CASE("where the queue is full a request is refused with when to try again") {
  BatcherOptions options;
  options.max_queue_size = 1;
  World world(options);
  world.ask_and_hold();
  CHECK(world.ask().what == Submitted::What::taken);
  const auto submitted = world.ask();
  CHECK(submitted.what == Submitted::What::refused);
  CHECK(submitted.refusal.code == Code::resource_exhausted);
  CHECK(submitted.refusal.retry_after >= 0.01);
  CHECK(world.board->at(reason(Reason::queue_full)) == 1);
  CHECK(world.service->in_flight() == 2);
  CHECK(world.board->at("inside") == 2);
  world.executor->open();
  world.outbox->wait(2);
}

TEST_CASE("a request for a version that is being unloaded goes where its name leads next") {
  World world;
  world.batcher->close(1);
  const auto left = world.ask();
  CHECK(left.what == Submitted::What::pass_on);
  CHECK(left.message == message_of({}));
  CHECK(world.service->in_flight() == 0);
  world.serve();
  CHECK(world.ask().what == Submitted::What::taken);
  CHECK(world.reply().message == answer("", {255, 255, 255, 0}));
  CHECK(world.board->at(reason(Reason::model_not_ready)) == 0);
}

TEST_CASE("what waits in a version that is unloaded is told so") {
  World world;
  world.ask_and_hold();
  world.ask();
  CHECK(!world.batcher->close(0));
  const auto refusal = std::get<Refusal>(world.outbox->wait(1)[0].result);
  CHECK(refusal.code == Code::unavailable);
  CHECK(refusal.details == "the version was unloaded before the request could run");
  world.executor->open();
  world.outbox->wait(2);
}

TEST_CASE("a request that is cancelled while it waits is not answered") {
  World world;
  world.ask_and_hold();
  const auto waiting = world.ask();
  world.service->cancel(waiting.call);
  CHECK(world.batcher->pending() == 0);
  CHECK(world.service->in_flight() == 1);
  CHECK(world.board->at(code(Code::cancelled)) == 1);
  world.service->cancel(waiting.call);
  CHECK(world.board->at(reason(Reason::cancelled)) == 1);
  world.executor->open();
  CHECK(world.outbox->wait(1).size() == 1);
}

TEST_CASE("cancelling what is answered changes nothing") {
  World world;
  const auto submitted = world.ask();
  world.outbox->wait(1);
  world.service->cancel(submitted.call);
  world.wait_until_idle();
  CHECK(world.board->at(code(Code::cancelled)) == 0);
  CHECK(world.board->at("inside") == 0);
}

TEST_CASE("a request whose deadline has passed is told by the batcher") {
  World world;
  CHECK(world.ask({}, now() - 1).what == Submitted::What::taken);
  const Refusal refusal = world.refusal();
  CHECK(refusal.code == Code::deadline_exceeded);
  CHECK(refusal.details == "the deadline passed before the request could run");
  CHECK(world.board->at(reason(Reason::deadline)) == 1);
  CHECK(world.board->at("kept", 3) > 0);
}

TEST_CASE("the timeout of a request ends its wait before its deadline does") {
  World world;
  world.ask_and_hold();
  Asking asking;
  asking.timeout = 1;
  CHECK(world.ask(asking, now() + 3600).what == Submitted::What::taken);
  const Seconds late = now() + 1e-6;
  while (now() < late) std::this_thread::yield();
  world.executor->open();
  for (const Finished& each : world.outbox->wait(2)) {
    const auto* refusal = std::get_if<Refusal>(&each.result);
    CHECK((refusal != nullptr) == (each.call.stream == 3));
    if (refusal) CHECK(refusal->code == Code::deadline_exceeded);
  }
}

TEST_CASE("requests go by their priorities, those without one last") {
  BatcherOptions options;
  options.priority_levels = 3;
  World world(options);
  world.ask_and_hold();
  for (const unsigned char priority : {0, 4, 2, 1}) {
    Asking asking;
    asking.priority = asking.pixels[0] = priority;
    world.ask(asking);
  }
  world.executor->open();
  world.outbox->wait(5);
  CHECK(world.executor->first_pixels() == std::vector<int>{255, 1, 2, 0, 4});
}

TEST_CASE("a model's failure is told with an id to look for in the log") {
  World world;
  world.executor->fails = true;
  world.ask();
  const Refusal refusal = world.refusal();
  REQUIRE(world.faults.size() == 1);
  const Fault& fault = world.faults[0];
  CHECK(refusal.code == Code::internal);
  CHECK(refusal.details ==
        "the model failed; the server's log says why (request " + fault.request_id + ")");
  CHECK(refusal.cause == nullptr);
  CHECK(fault.request_id.size() == 32);
  CHECK(fault.request_id[12] == '4');
  CHECK(fault.text == refusal.details);
  CHECK(text_of(fault.cause) == "the weights are gone");
  CHECK(fault.model == "brightness");
  CHECK(fault.version == "3");
  CHECK(world.board->at(reason(Reason::failed)) == 1);
}

TEST_CASE("a failure is logged by the request's own id, or else that of its headers") {
  for (const std::string id : {"", "mine"}) {
    World world;
    world.executor->fails = true;
    Asking asking;
    asking.id = id;
    world.ask(asking, kNever, "of the headers");
    CHECK(world.refusal().details == "the model failed; the server's log says why");
    CHECK(world.faults.at(0).request_id == (id.empty() ? "of the headers" : "mine"));
  }
}

TEST_CASE("outputs that are not those of the signature are the server's fault") {
  World world;
  world.forget_an_output();
  Asking asking;
  asking.id = "mine";
  world.ask(asking);
  CHECK(world.refusal().details == "internal error");
  CHECK(text_of(world.faults.at(0).cause) ==
        "the outputs are not those of the model's signature");
  CHECK(world.board->at(code(Code::internal)) == 1);
}

TEST_CASE("an output that nobody asks for need not be there") {
  World world;
  world.forget_an_output();
  Asking asking;
  asking.output = "labels";
  world.ask(asking);
  CHECK(world.reply().version == "3");
}

TEST_CASE("slots for the usual refusals are asked for before there is one") {
  World world;
  std::size_t asked = world.board->known();
  world.service->refuse_unread();
  world.service->draining = true;
  world.service->refuse_unread();
  CHECK(world.board->known() == asked);
}

TEST_CASE("there is room until as many are inside as may be, those that were passed on too") {
  World world;  // with room for three
  world.ask_and_hold();
  CHECK(world.service->has_room());
  world.service->passed_on(2);
  CHECK(!world.service->has_room());
  world.service->passed_on(-1);
  CHECK(world.service->has_room());
  CHECK(world.service->inside() == 2);
  world.executor->open();
  world.outbox->wait(1);
}

TEST_CASE("what is refused unread is told why, and counted as nobody's") {
  World world;
  const Refusal overloaded = world.service->refuse_unread();
  CHECK(overloaded.code == Code::resource_exhausted);
  CHECK(overloaded.details == "the server is overloaded");
  CHECK(overloaded.retry_after == 0.01);
  world.service->draining = true;
  const Refusal stopping = world.service->refuse_unread();
  CHECK(stopping.code == Code::unavailable);
  CHECK(stopping.details == "the server is stopping");
  CHECK(stopping.retry_after < 0);
  CHECK(world.board->at("code8") == 1);
  CHECK(world.board->at("reason" + std::to_string(static_cast<int>(Reason::draining))) == 1);
  CHECK(world.board->at("bytes") == 0);
}

TEST_CASE("an answer may come after its service is gone") {
  World world;
  world.ask_and_hold();
  world.service.reset();
  world.executor->open();
  CHECK(world.reply().message == answer("", {255, 255, 255, 0}));
}

TEST_CASE("a version that is routed to no more is let go when its last request is answered") {
  World world;
  auto submitted = world.ask_and_hold();
  world.service->set_routes({});
  const std::weak_ptr<Batcher> batcher = world.batcher;
  world.batcher.reset();
  world.executor->open();
  CHECK(world.reply().message == answer("", {255, 255, 255, 0}));
  world.wait_until_idle();
  CHECK(batcher.expired());
  CHECK((submitted.call != nullptr));  // which a connection may still have
}

TEST_CASE("who cancels the last request of an unloaded version does not wait for what runs") {
  World world;
  auto submitted = world.ask_and_hold();
  world.service->set_routes({});
  CHECK_FALSE(world.batcher->close(0));
  const std::weak_ptr<Batcher> batcher = world.batcher;
  world.batcher.reset();
  world.service->cancel(std::exchange(submitted.call, nullptr));  // while the run is still held
  CHECK(world.service->in_flight() == 0);
  world.executor->open();
  const auto end = std::chrono::steady_clock::now() + kPatience;
  while (!batcher.expired() && std::chrono::steady_clock::now() < end) std::this_thread::yield();
  CHECK(batcher.expired());
}

TEST_CASE("each of many requests is answered or cancelled once, and nobody stays inside") {
  BatcherOptions options;
  options.max_batch_size = 8;
  options.max_queue_size = 5000;
  options.instance_count = 2;
  World world(options);
  constexpr int kRequests = 2000;
  for (int i = 0; i < kRequests; ++i) {
    const auto submitted = world.ask();
    if (i % 3 == 0) world.service->cancel(submitted.call);
    if (i % 100 == 0) world.serve();  // the version before it ends with its last request
  }
  world.wait_until_idle();
  const auto cancelled = static_cast<std::size_t>(world.board->at(code(Code::cancelled)));
  CHECK(world.board->at("answered") == static_cast<double>(kRequests - cancelled));
  CHECK(world.outbox->wait(kRequests - cancelled).size() == kRequests - cancelled);
  CHECK(world.board->at("inside") == 0);
}
