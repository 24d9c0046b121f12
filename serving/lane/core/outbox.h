// ServerOutbox: where batch threads put what came of calls, and how they wake the I/O thread.
#pragma once

#include <atomic>
#include <mutex>
#include <vector>

#include "descriptor.h"
#include "service.h"

namespace lane {

class ServerOutbox : public Outbox {
 public:
  ServerOutbox();  // throws std::system_error where there is no eventfd to be had
  void push(Finished finished) override;
  // Wakes the I/O thread, unless it has been told already; also where nothing was pushed.
  void flush() override;

  // The I/O thread's: readable, edge-triggered, after a flush.
  int fd() const { return event_.get(); }
  // All that was pushed, if there was a flush since; `taken` is empty and lends its memory.
  void take(std::vector<Finished>& taken);

 private:
  Descriptor event_;
  std::atomic<bool> told_{false};
  std::mutex mutex_;
  std::vector<Finished> finished_;
};

}  // namespace lane
