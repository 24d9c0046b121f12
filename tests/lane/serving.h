// A service with one tiny model, y = 3x, that computes real answers on the batcher's threads; and
// an outbox that a test waits at.
#pragma once

#include <doctest/doctest.h>

#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "batching.h"
#include "grpc.h"
#include "protobuf.h"
#include "service.h"

namespace lane {

// Keeps what came until it is asked for.
class TestOutbox : public Outbox {
 public:
  void push(Finished finished) override {
    const std::lock_guard<std::mutex> guard(lock_);
    finished_.push_back(std::move(finished));
    came_.release();
  }
  void flush() override {}
  Finished take() {
    REQUIRE(came_.acquire());
    const std::lock_guard<std::mutex> guard(lock_);
    Finished first = std::move(finished_.front());
    finished_.erase(finished_.begin());
    return first;
  }

 private:
  std::mutex lock_;
  std::vector<Finished> finished_;
  Semaphore came_;
};

// y = 3x for rows of `width` FP32; while it is held, its runs wait.
class Tripler : public Executor {
 public:
  void hold() { gate_.set(false); }
  void release() { gate_.set(true); }

  Outputs run(std::shared_ptr<const Batch> batch) override {
    const int ticket = gate_.ticket();
    entered.release();
    if (!gate_.pass(ticket)) throw RunFailed("nobody released the model");
    const Bytes& x = batch->inputs[0];
    Tensor y{"y", "FP32", {batch->rows, batch->layout->inputs[0].shape[0]}, {x.begin(), x.end()}};
    for (std::size_t at = 0; at < y.data.size(); at += sizeof(float)) {
      float value;
      std::memcpy(&value, &y.data[at], sizeof value);
      value *= 3;
      std::memcpy(&y.data[at], &value, sizeof value);
    }
    Outputs outputs;
    outputs.tensors.push_back(std::move(y));
    return outputs;
  }

  Semaphore entered;

 private:
  Gate gate_;
};

inline std::string message_field(std::uint32_t number, const std::string& value) {
  std::string out;
  Writer(out).bytes(bytes_tag(number), value);
  return out;
}

inline std::string floats(const std::vector<float>& values) {
  std::string bytes(values.size() * sizeof(float), '\0');
  if (!values.empty()) std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

// A ModelInferRequest of one row.
inline std::string times_request(const std::vector<float>& row,
                                 const std::string& model = "times") {
  std::string shape;
  Writer writer(shape);
  writer.varint(1);
  writer.varint(row.size());
  const std::string input =
      message_field(1, "x") + message_field(2, "FP32") + message_field(3, shape);
  return message_field(1, model) + message_field(5, input) + message_field(7, floats(row));
}

// The numbers that end an answer: its one output's raw contents.
inline std::vector<float> last_floats(const std::string& answer, std::size_t count) {
  REQUIRE(answer.size() > count * sizeof(float));
  std::vector<float> values(count);
  std::memcpy(values.data(), answer.data() + answer.size() - count * sizeof(float),
              count * sizeof(float));
  return values;
}

struct Serving {
  explicit Serving(std::size_t room = 100000, std::int64_t width = -1, bool tokens = false) {
    Signature signature{
        "times", "7", {{"x", "FP32", {-1, width}}}, {{"y", "FP32", {-1, width}}}, {}};
    BatcherOptions options;
    options.max_batch_size = 64;
    options.max_queue_size = 100000;
    auto batcher = std::make_shared<Batcher>(executor, options);
    auto counters = std::make_shared<ModelCounters>(ModelSeries());
    auto model = std::make_shared<ServedModel>(signature, batcher, counters);
    ServiceOptions serving;
    serving.room = room;
    serving.prediction_ids = false;
    serving.tokens = tokens;
    service = std::make_unique<InferService>(serving, outbox, nullptr, ServiceSeries());
    service->set_routes({{{"times", ""}, model}, {{"times", "7"}, model}});
  }

  std::shared_ptr<Tripler> executor = std::make_shared<Tripler>();
  std::shared_ptr<TestOutbox> outbox = std::make_shared<TestOutbox>();
  std::unique_ptr<InferService> service;
};

}  // namespace lane
