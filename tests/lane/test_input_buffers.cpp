// Batches are stacked where the executor wants them, and nobody else writes there meanwhile.
#include "input_buffers.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <thread>

#include "batching.h"
#include "predictions.h"

namespace lane {
namespace {

using Batches = std::vector<Values>;
constexpr int kElsewhere = -1;

// A doubler with memory of its own for its inputs: sets of so many rows, full of 99s.
class Bound : public Doubler {
 public:
  Bound(std::size_t sets, std::int64_t rows)
      : memory_(sets, Values(static_cast<std::size_t>(rows), 99)), buffers_(all_of(memory_)) {}

  std::vector<Bytes> buffers(const Layout& layout, std::int64_t rows) override {
    return buffers_.lend(layout, rows);
  }
  Outputs run(std::shared_ptr<const Batch> batch) override {
    note(*batch);
    const Values before = doubles(batch->inputs[0]);
    Outputs outputs = Doubler::run(batch);
    std::this_thread::yield();  // to who may write there
    written_over += doubles(batch->inputs[0]) != before;
    if (keeps) kept.push_back(std::move(batch));
    return outputs;
  }

  // Of each batch: the number of the set that it was in.
  std::vector<int> places() const {
    const std::lock_guard<std::mutex> guard(lock_);
    return places_;
  }
  const Values& memory(std::size_t set) const { return memory_[set]; }

  bool keeps = false;
  std::vector<std::shared_ptr<const Batch>> kept;
  std::atomic<int> written_over{0};

 private:
  static InputBuffers all_of(std::vector<Values>& memory) {
    std::vector<InputBuffers::Set> sets;
    for (Values& each : memory) {
      auto* first = reinterpret_cast<std::byte*>(each.data());
      sets.push_back({*layout_of(1), static_cast<std::int64_t>(each.size()), {first}, nullptr});
    }
    return InputBuffers(std::move(sets));
  }
  void note(const Batch& batch) {
    const auto here = [&](const Values& each) {
      return reinterpret_cast<const std::byte*>(each.data()) == batch.inputs[0].begin();
    };
    const auto found = std::find_if(memory_.begin(), memory_.end(), here);
    const std::lock_guard<std::mutex> guard(lock_);
    places_.push_back(found == memory_.end() ? kElsewhere
                                             : static_cast<int>(found - memory_.begin()));
  }

  std::vector<Values> memory_;
  const InputBuffers buffers_;
  mutable std::mutex lock_;
  std::vector<int> places_;
};

struct World {
  explicit World(std::shared_ptr<Bound> model, std::vector<std::int64_t> buckets = {})
      : bound(std::move(model)), batcher(bound, options(std::move(buckets))) {}
  ~World() { bound->release(); }

  AskedPtr ask(Values values, std::int64_t width = 1) {
    auto request = make_request(std::move(values), width);
    CHECK_FALSE(batcher.submit(request).has_value());
    return request;
  }
  // Keeps the instance busy until the model is released.
  AskedPtr occupy(Values values = {0}) {
    bound->hold();
    auto request = ask(std::move(values));
    REQUIRE(bound->wait_until_entered());
    return request;
  }
  static BatcherOptions options(std::vector<std::int64_t> buckets) {
    BatcherOptions options;
    options.max_batch_size = 8;
    options.buckets = std::move(buckets);
    return options;
  }

  std::shared_ptr<Bound> bound;
  Batcher batcher;
};

TEST_CASE("rows are stacked in the executor's memory, and what fills a bucket is zeros") {
  World world(std::make_shared<Bound>(1, 8), {4, 8});
  const auto before = world.occupy({5, 5, 5, 5});
  const auto first = world.ask({1}), second = world.ask({2, 3});
  world.bound->release();
  CHECK(before->doubled() == Values(4, 10));
  CHECK(first->doubled() == Values{2});
  CHECK(second->doubled() == Values{4, 6});
  CHECK(world.batcher.close(kPatience));
  CHECK(world.bound->batches() == Batches{{5, 5, 5, 5}, {1, 2, 3, 0}});
  CHECK(world.bound->places() == std::vector<int>{0, 0});
  CHECK(world.bound->memory(0) == Values{1, 2, 3, 0, 99, 99, 99, 99});
}

TEST_CASE("the next batch is stacked there while answers of the one before go out") {
  World world(std::make_shared<Bound>(1, 8));
  world.bound->hold();
  auto slow = make_request({1, 2});
  slow->on_complete = [&] { CHECK(world.bound->wait_until_entered()); };
  CHECK_FALSE(world.batcher.submit(slow).has_value());
  REQUIRE(world.bound->wait_until_entered());
  const auto following = world.ask({3, 4});
  world.bound->release();
  CHECK(slow->doubled() == Values{2, 4});
  CHECK(following->doubled() == Values{6, 8});
  CHECK(world.bound->places() == std::vector<int>{0, 0});
}

TEST_CASE("who shared a batch that failed runs again from there") {
  World world(std::make_shared<Bound>(1, 8));
  const auto busy = world.occupy();
  const auto good = world.ask({1}), bad = world.ask({13}), other = world.ask({2});
  world.bound->release();
  CHECK(text_of(bad->refusal().cause) == "unlucky");
  CHECK(good->doubled() == Values{2});
  CHECK(other->doubled() == Values{4});
  CHECK(world.bound->batches() == Batches{{0}, {1, 13, 2}, {1}, {13}, {2}});
  CHECK(world.bound->places() == std::vector<int>(5, 0));
}

TEST_CASE("rows that do not fit are stacked elsewhere") {
  World world(std::make_shared<Bound>(1, 2));
  CHECK(world.ask({1, 2, 3})->doubled() == Values{2, 4, 6});
  CHECK(world.ask({1, 2}, 2)->doubled() == Values{2, 4});
  CHECK(world.ask({1, 2})->doubled() == Values{2, 4});
  CHECK(world.bound->places() == std::vector<int>{kElsewhere, kElsewhere, 0});
}

TEST_CASE("who keeps a batch keeps its memory, and the next is stacked elsewhere") {
  World world(std::make_shared<Bound>(1, 8));
  world.bound->keeps = true;
  CHECK(world.ask({1})->doubled() == Values{2});
  CHECK(world.ask({2})->doubled() == Values{4});
  CHECK(world.batcher.close(kPatience));
  CHECK(doubles(world.bound->kept[0]->inputs[0]) == Values{1});
  CHECK(world.bound->places() == std::vector<int>{0, kElsewhere});
}

TEST_CASE("what predicts around an executor stacks where that wants it") {
  Predicting predicting(std::make_shared<Bound>(1, 8), {});
  const auto lent = predicting.buffers(*layout_of(1), 3);
  REQUIRE(lent.size() == 1);
  CHECK(doubles(lent[0]) == Values{99, 99, 99});
  CHECK(predicting.buffers(*layout_of(1), 3).empty());  // they are lent
}

TEST_CASE("instances never share memory, and each request gets its own answer") {
  auto options = World::options({});
  options.instance_count = 3;
  options.max_queue_size = 1000;
  const auto bound = std::make_shared<Bound>(3, 8);
  Batcher batcher(bound, options);
  std::vector<AskedPtr> asked;
  for (int number = 0; number < 600; ++number) {
    asked.push_back(make_request({number + 0.5, number + 0.25}));
    CHECK_FALSE(batcher.submit(asked.back()).has_value());
  }
  for (const auto& each : asked) {
    CHECK(each->doubled() == Values{2 * each->values[0], 2 * each->values[1]});
  }
  CHECK(batcher.close(kPatience));
  CHECK(bound->written_over == 0);
  const auto places = bound->places();
  CHECK(std::count(places.begin(), places.end(), kElsewhere) == 0);
}

}  // namespace
}  // namespace lane
