// ModelObserver: what becomes of what a version's batcher tells: it is counted, and answers go out.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "batcher.h"
#include "counters.h"
#include "service.h"

namespace lane {

class ModelObserver : public BatchObserver {
 public:
  // `warn` is told of requests that failed together; it throws nothing.
  ModelObserver(std::shared_ptr<ModelCounters> counters, std::shared_ptr<Outbox> outbox,
                std::function<void(const std::string&)> warn)
      : counters_(std::move(counters)), outbox_(std::move(outbox)), warn_(std::move(warn)) {}

  void ran(const Execution& execution) override { counters_->executed(execution); }
  void waiting(std::size_t requests) override { counters_->waiting(requests); }
  void busy(int more) override { counters_->busy(more); }
  void handed_out() override { outbox_->flush(); }
  void failed(const std::string& warning) override { warn_(warning); }

 private:
  std::shared_ptr<ModelCounters> counters_;
  std::shared_ptr<Outbox> outbox_;
  std::function<void(const std::string&)> warn_;
};

}  // namespace lane
