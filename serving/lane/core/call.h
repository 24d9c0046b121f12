// Call: one ModelInfer request on its way, from its message to the answer in the outbox.
//
// The message stays where it is for as long as the call: the inputs and the id are views of it.
#pragma once

#include <atomic>
#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "request.h"
#include "service.h"

namespace lane {

// What the calls of a service share, and may outlive it with: where answers go, who signs, and how
// many requests are inside.
struct Answering {
  ServiceOptions options;
  std::shared_ptr<Outbox> outbox;
  std::shared_ptr<const Signer> signer;  // null: answers carry no ids
  ServiceSeries series;
  std::atomic<std::size_t> in_flight{0};
  std::atomic<Seconds> last_wait{0};  // that the last answer spent in the queue

  void enter();
  void leave();

 private:
  void show(std::size_t now_inside);
};

class Call : public Request {
 public:
  Call(std::shared_ptr<Answering> answering, CallId id, std::string message, Seconds arrived,
       std::string_view header_id);

  bool claim() override { return !claimed_.exchange(true); }
  bool settled() const override { return claimed_.load(); }
  // Encodes, counts, and pushes what came of it.
  void complete(Outcome outcome) override;
  // The caller went away; the call is claimed.
  void cancelled();
  // Counts it, as one of `served` and as the caller will be told.
  Refusal refused(Refusal refusal);

  std::string message;
  std::string_view request_id;  // of the message
  std::shared_ptr<ServedModel> served;
  std::vector<int> outputs;  // that it asks for

 private:
  std::variant<Reply, Refusal> result(Outcome outcome);
  Reply replied(const Answer& answer);
  void check(const Answer& answer) const;
  std::optional<std::string> ids(const Answer& answer) const;
  void report(Refusal& refusal) const;

  const std::shared_ptr<Answering> answering_;
  const CallId id_;
  const std::string header_id_;
  std::atomic<bool> claimed_{false};
};

}  // namespace lane
