// Any bytes as what a client sends, through a whole connection: a service with one tiny model, and
// an upstream that answers what is passed on.
//
// The first byte of an input says in pieces of which size it arrives; from 0x80 on the connection
// preface and an empty SETTINGS are put before it, so that the fuzzer need not find them. Of
// some of its values, ModelInfer needs a token.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "connection.h"

namespace {

using namespace lane;

constexpr std::string_view preface("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", 33);
constexpr std::size_t most_steps = 64;
// Of "0123456789abcdef0123456789abcdef", as the corpus has it.
constexpr Digest token_sha256{0x3e, 0xb1, 0xbd, 0x43, 0x99, 0x47, 0xeb, 0x76, 0x29, 0x98, 0xe5,
                              0x66, 0xcc, 0xc2, 0xe0, 0x99, 0xc7, 0x91, 0x11, 0x8b, 0x2f, 0x40,
                              0x57, 0x9c, 0xc4, 0xf7, 0xda, 0x2b, 0x50, 0x61, 0xb7, 0xf9};

void expect(bool holds) {
  if (!holds) std::abort();
}

class Negating : public Executor {
 public:
  Outputs run(std::shared_ptr<const Batch> batch) override {
    const Bytes& x = batch->inputs[0];
    Tensor y{"y", "FP32", {batch->rows, 1}, {x.begin(), x.end()}};
    for (std::size_t at = 3; at < y.data.size(); at += 4) y.data[at] ^= std::byte{0x80};
    Outputs outputs;
    outputs.tensors.push_back(std::move(y));
    return outputs;
  }
};

class Collected : public Outbox {
 public:
  void push(Finished finished) override {
    const std::lock_guard<std::mutex> guard(lock_);
    finished_.push_back(std::move(finished));
  }
  void flush() override {}
  std::vector<Finished> take() {
    const std::lock_guard<std::mutex> guard(lock_);
    return std::exchange(finished_, {});
  }

 private:
  std::mutex lock_;
  std::vector<Finished> finished_;
};

// Answers each call with what it was sent, when it has all of it; takes bytes a while later.
class Echo : public Upstream {
 public:
  explicit Echo(Downstream& downstream) : downstream_(downstream) {}

  void open(std::int32_t stream, Headers headers, bool end) override {
    expect(!headers.empty());
    begun_.push_back(stream);
    if (end) ended_.push_back(stream);
  }
  void data(std::int32_t stream, std::string_view bytes, bool end) override {
    came_.emplace_back(stream, std::string(bytes));
    if (end) ended_.push_back(stream);
  }
  void reset(std::int32_t, std::uint32_t) override {}
  void taken(std::int32_t, std::size_t) override {}

  void act() {
    for (const auto stream : std::exchange(begun_, {})) {
      if (stream % 8 == 3) {
        downstream_.upstream_reset(stream, 8);
      } else {
        downstream_.upstream_headers(stream, {{":status", "200"}}, stream % 8 == 5);
      }
    }
    for (const auto& [stream, bytes] : std::exchange(came_, {})) {
      downstream_.upstream_taken(stream, bytes.size());
      downstream_.upstream_data(stream, bytes);
    }
    for (const auto stream : std::exchange(ended_, {})) {
      downstream_.upstream_trailers(stream, {{"grpc-status", "0"}});
    }
  }

 private:
  Downstream& downstream_;
  std::vector<std::int32_t> begun_;
  std::vector<std::pair<std::int32_t, std::string>> came_;
  std::vector<std::int32_t> ended_;
};

struct Target {
  explicit Target(bool tokens) {
    const Signature signature{"times", "7", {{"x", "FP32", {-1, 1}}}, {{"y", "FP32", {-1, 1}}}, {}};
    auto batcher = std::make_shared<Batcher>(std::make_shared<Negating>(), BatcherOptions());
    auto model = std::make_shared<ServedModel>(signature, batcher,
                                               std::make_shared<ModelCounters>(ModelSeries()));
    ServiceOptions options;
    options.room = 100;
    options.tokens = tokens;
    options.prediction_ids = false;
    service = std::make_unique<InferService>(options, outbox, nullptr, ServiceSeries());
    service->set_routes({{{"times", ""}, model}});
    service->tokens.set({{"one", token_sha256, true, 1e6, 1e6}, {"two", {}, false}});
    limits.max_message_bytes = 64 * 1024;
    limits.max_streams = 16;
    limits.max_header_bytes = 4096;
    limits.max_buffered_bytes = 128 * 1024;
    limits.idle_timeout = 200;
    limits.max_age = 1000;
    limits.resets_burst = 20;
  }

  void run(std::string_view bytes) {
    ++connections;
    Echo* echo = nullptr;
    bool lost = false;
    Seconds now = 1000;
    Connection connection(
        connections, {"unix:", "CN=x"}, limits, *service,
        [&](Downstream& downstream) {
          auto made = std::make_unique<Echo>(downstream);
          echo = made.get();
          lost = false;
          return made;
        },
        now);
    const std::size_t kind = bytes.empty() ? 0 : static_cast<std::uint8_t>(bytes[0]);
    if (!bytes.empty()) bytes.remove_prefix(1);
    std::string input(kind >= 0x80 ? preface : std::string_view());
    input.append(bytes);
    const std::size_t piece = std::max({std::size_t{1}, kind % 64 * 16, input.size() / most_steps});
    std::string out;
    for (std::size_t at = 0; at < input.size(); at += piece) {
      // A copy of exactly that size: whoever reads beyond it is caught.
      const std::vector<std::uint8_t> part(input.begin() + static_cast<std::ptrdiff_t>(at),
                                           input.begin() + static_cast<std::ptrdiff_t>(
                                                               std::min(at + piece, input.size())));
      const bool reads = connection.receive(part.data(), part.size(), now);
      service->wake();
      if (echo && !lost) echo->act();
      if (echo && !lost && kind % 5 == 4) {
        lost = true;
        connection.upstream_lost();
      }
      for (Finished& each : outbox->take()) {
        if (each.call.connection != connections) continue;
        connection.finish(each.call.stream, std::move(each.result));
      }
      if (kind % 7 == 6) connection.drain();
      connection.send(out, kind % 3 == 0 ? 64 : 1 << 20);
      expect(out.size() <= (input.size() + 1000) * 500);
      now += kind % 11;
      connection.tick(now);
      if (!reads || connection.finished()) break;
    }
    // Whatever came, it ends once nobody says anything any more.
    for (int i = 0; i < 100 && !connection.finished(); ++i) {
      now += 20;
      connection.tick(now);
      connection.send(out, 1 << 20);
    }
    expect(connection.finished());
  }

  std::uint64_t connections = 0;
  Limits limits;
  std::shared_ptr<Collected> outbox = std::make_shared<Collected>();
  std::unique_ptr<InferService> service;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static Target open(false);
  static Target guarded(true);
  const bool tokens = size > 0 && data[0] % 17 == 16;
  (tokens ? guarded : open).run({reinterpret_cast<const char*>(data), size});
  return 0;
}
