// InferService: a ModelInfer message's bytes in, a completion with the answer's bytes out.
//
// The native half of serving/inference.py: routes, checks, queues, encodes and counts. Knows no
// HTTP/2: whoever listens hands in what arrived, and takes from an Outbox what came of it.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

#include "batcher.h"
#include "counters.h"
#include "prediction_ids.h"
#include "request.h"
#include "signature.h"
#include "tokens.h"

namespace lane {

// A call of a connection.
struct CallId {
  std::uint64_t connection = 0;
  std::int32_t stream = 0;
};

struct Reply {
  std::string message;  // gRPC-framed
  std::string version;
  Seconds queue_seconds = 0;
  Stages stages;
};

struct Finished {
  CallId call;
  std::variant<Reply, Refusal> result;
};

// Where completions go, from any thread; `flush` says that those pushed may go out together.
class Outbox {
 public:
  virtual ~Outbox() = default;
  virtual void push(Finished finished) = 0;
  virtual void flush() = 0;
};

// A version as the lane serves it. Its batcher also takes requests that came by Python.
struct ServedModel {
  ServedModel(Signature signature, std::shared_ptr<Batcher> batcher,
              std::shared_ptr<ModelCounters> counters)
      : checker(std::move(signature)), batcher(std::move(batcher)), counters(std::move(counters)) {}

  Checker checker;  // the I/O thread's
  std::shared_ptr<Batcher> batcher;
  std::shared_ptr<ModelCounters> counters;
};

// By name and version, where an empty version means the latest.
using Routes =
    std::map<std::pair<std::string, std::string>, std::shared_ptr<ServedModel>, std::less<>>;

// A request that failed by the server's own fault, for the log: its caller was told little.
struct Fault {
  std::exception_ptr cause;  // what was thrown, where something was
  std::string text;          // as the caller was told
  std::string request_id;    // the request's own, or one made up, which the caller was told then
  std::string model;
  std::string version;
};

struct ServiceOptions {
  std::size_t room = 1;        // requests that may be inside
  int priority_levels = 1;
  bool prediction_ids = true;
  bool tokens = false;         // callers need one
  std::uint64_t log_every = 0;  // one request in so many is to be logged, which is Python's; or 0
  std::function<void(const Fault&)> failed;  // throws nothing; called by a batch's thread
};

// One request on its way.
class Call;

struct Submitted {
  enum class What { taken, refused, pass_on };
  What what = What::pass_on;
  std::shared_ptr<Call> call;  // taken: its completion comes by the outbox
  Refusal refusal;             // refused: counted, and to be told by the caller
  std::string message;         // pass_on: the message as it came
  bool traced = false;         // pass_on: it was chosen to be traced
};

class InferService {
 public:
  InferService(ServiceOptions options, std::shared_ptr<Outbox> outbox,
               std::shared_ptr<const Signer> signer, ServiceSeries series);
  ~InferService();  // what is inside may be answered later

  // From any thread; requests that are inside stay where they are.
  void set_routes(Routes routes);
  // One request in so many of each model is to be traced, which is Python's; 0 is none. What holds
  // for a model that is not named stands under the empty name. Counting begins anew.
  void set_trace_rates(const std::map<std::string, std::uint64_t>& rates);

  // --- all below is the I/O thread's ---

  // A serialised ModelInferRequest, without its frame's prefix. A thread hears of what was
  // submitted by `wake`. `request_id` is that of the headers (x-request-id), for the log of a
  // fault.
  Submitted submit(CallId id, std::string message, Seconds arrived, Seconds deadline,
                   std::string_view request_id = {});
  // Wakes the batchers that got requests since.
  void wake();
  // The caller went away: completes it as cancelled, unless it is answered.
  void cancel(const std::shared_ptr<Call>& call);

  // Whether some requests are to be logged; and whether the next one is, of which each is to be
  // asked for once, as it arrives.
  bool logs() const;
  bool logs_next();
  // Whether one more request has room, together with those that were passed on.
  bool has_room() const;
  // How to refuse a request whatever it asks, where there is no room; to be made again after no
  // less than `retry`. Counted.
  Refusal refuse_unread(Seconds retry = kShortestRetry);
  // Counts a refusal of what was not read.
  Refusal counted(Refusal refusal);
  // Bytes that requests will have that are still being received, of all connections.
  std::size_t reserved = 0;
  // And of answers that wait for their clients.
  std::size_t unsent = 0;

  // --- of any thread again ---

  // Requests of Python's are inside, too: ModelInfer calls that were passed on, until they are
  // answered, and each request of a stream.
  void passed_on(int more) { passed_on_ += static_cast<std::size_t>(more); }
  const ConnectionSeries& connection_series() const;
  // Requests inside that the lane answers itself.
  std::size_t in_flight() const;
  // Those, and Python's.
  std::size_t inside() const;
  // The server is stopping.
  std::atomic<bool> draining{false};
  // Who may call.
  Tokens tokens;
  // Requests whose trace is to be recorded are passed on: Python makes the spans.
  std::atomic<bool> traces_observed{false};

 private:
  struct State;

  std::unique_ptr<State> state_;
  std::atomic<std::size_t> passed_on_{0};
};

}  // namespace lane
