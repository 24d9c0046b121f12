// A socket as it is.
#include "wire.h"

#include <sys/socket.h>

#include <cerrno>
#include <utility>

namespace lane {
namespace {

ssize_t outcome(ssize_t result) {
  if (result >= 0) return result;
  const bool later = errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR;
  return later ? Wire::again : Wire::broken;
}

class PlainWire : public Wire {
 public:
  explicit PlainWire(Descriptor socket) : socket_(std::move(socket)) {}

  ssize_t read(void* data, std::size_t size) override {
    return outcome(::recv(socket_.get(), data, size, MSG_DONTWAIT));
  }
  ssize_t write(const void* data, std::size_t size) override {
    return outcome(::send(socket_.get(), data, size, MSG_DONTWAIT | MSG_NOSIGNAL));
  }
  void finish() override { ::shutdown(socket_.get(), SHUT_WR); }
  int fd() const override { return socket_.get(); }

 private:
  Descriptor socket_;
};

}  // namespace

std::unique_ptr<Wire> plain_wire(Descriptor socket) {
  return std::make_unique<PlainWire>(std::move(socket));
}

}  // namespace lane
