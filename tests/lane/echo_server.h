// What stands in for grpcio's server: gRPC on a Unix socket, on a thread of its own, that answers
// each call with its own request, and with the metadata by which the lane tells who called.
#pragma once

#include <doctest/doctest.h>
#include <nghttp2/nghttp2.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <list>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "descriptor.h"

namespace lane {

class EchoConnection {
 public:
  explicit EchoConnection(Descriptor socket) : socket_(std::move(socket)) {
    nghttp2_session_callbacks* callbacks = nullptr;
    nghttp2_session_callbacks_new(&callbacks);
    nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data);
    nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame);
    nghttp2_session* session = nullptr;
    nghttp2_session_server_new(&session, callbacks, this);
    nghttp2_session_callbacks_del(callbacks);
    session_.reset(session);
    nghttp2_submit_settings(session, NGHTTP2_FLAG_NONE, nullptr, 0);
  }
  int fd() const { return socket_.get(); }
  short wanted() const { return out_.empty() ? POLLIN : POLLIN | POLLOUT; }
  // False once the other side is gone.
  bool serve() {
    std::uint8_t buffer[65536];
    const ssize_t count = ::recv(fd(), buffer, sizeof buffer, MSG_DONTWAIT);
    if (count == 0) return false;
    if (count > 0 && nghttp2_session_mem_recv(session_.get(), buffer, count) < 0) return false;
    const std::uint8_t* bytes = nullptr;
    for (ssize_t size; (size = nghttp2_session_mem_send(session_.get(), &bytes)) > 0;)
      out_.append(reinterpret_cast<const char*>(bytes), static_cast<std::size_t>(size));
    const ssize_t sent = ::send(fd(), out_.data(), out_.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent > 0) out_.erase(0, static_cast<std::size_t>(sent));
    return true;
  }

 private:
  struct Call {
    std::string peer, identity, body;
    std::size_t sent = 0;
  };
  static EchoConnection& of(void* self) { return *static_cast<EchoConnection*>(self); }
  static std::string text(const std::uint8_t* bytes, std::size_t size) {
    return {reinterpret_cast<const char*>(bytes), size};
  }
  // nghttp2 copies both before it returns.
  static nghttp2_nv field(std::string_view name, std::string_view value) {
    const auto bytes = [](std::string_view each) {
      return reinterpret_cast<std::uint8_t*>(const_cast<char*>(each.data()));
    };
    return {bytes(name), bytes(value), name.size(), value.size(), NGHTTP2_NV_FLAG_NONE};
  }

  static int on_header(nghttp2_session*, const nghttp2_frame* frame, const std::uint8_t* name,
                       std::size_t name_size, const std::uint8_t* value, std::size_t value_size,
                       std::uint8_t, void* self) {
    Call& call = of(self).calls_[frame->hd.stream_id];
    if (text(name, name_size) == "x-digits-peer") call.peer = text(value, value_size);
    if (text(name, name_size) == "x-digits-peer-identity") call.identity = text(value, value_size);
    return 0;
  }
  static int on_data(nghttp2_session*, std::uint8_t, std::int32_t id, const std::uint8_t* bytes,
                     std::size_t size, void* self) {
    of(self).calls_[id].body.append(text(bytes, size));
    return 0;
  }
  static int on_frame(nghttp2_session* session, const nghttp2_frame* frame, void* self) {
    if (!(frame->hd.flags & NGHTTP2_FLAG_END_STREAM) || frame->hd.stream_id == 0) return 0;
    const Call& call = of(self).calls_[frame->hd.stream_id];
    const nghttp2_nv headers[] = {field(":status", "200"),
                                  field("content-type", "application/grpc"),
                                  field("peer", call.peer), field("identity", call.identity)};
    nghttp2_data_provider body{};
    body.read_callback = read;
    nghttp2_submit_response(session, frame->hd.stream_id, headers, std::size(headers), &body);
    return 0;
  }
  static ssize_t read(nghttp2_session* session, std::int32_t id, std::uint8_t* to, std::size_t most,
                      std::uint32_t* flags, nghttp2_data_source*, void* self) {
    Call& call = of(self).calls_[id];
    const std::size_t size = call.body.copy(reinterpret_cast<char*>(to), most, call.sent);
    call.sent += size;
    if (call.sent < call.body.size()) return static_cast<ssize_t>(size);
    const nghttp2_nv status = field("grpc-status", "0");
    *flags |= NGHTTP2_DATA_FLAG_EOF | NGHTTP2_DATA_FLAG_NO_END_STREAM;
    nghttp2_submit_trailer(session, id, &status, 1);
    return static_cast<ssize_t>(size);
  }

  struct Free {
    void operator()(nghttp2_session* session) const { nghttp2_session_del(session); }
  };
  Descriptor socket_;
  std::map<std::int32_t, Call> calls_;
  std::unique_ptr<nghttp2_session, Free> session_;
  std::string out_;
};

class EchoServer {
 public:
  explicit EchoServer(const std::string& path)
      : listener_(::socket(AF_UNIX, SOCK_STREAM, 0)), stop_(eventfd(0, 0)) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path.copy(address.sun_path, sizeof address.sun_path - 1);
    REQUIRE(bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
    REQUIRE(listen(listener_.get(), 1000) == 0);
    thread_ = std::thread([this] { run(); });
  }
  ~EchoServer() {
    eventfd_write(stop_.get(), 1);
    thread_.join();
  }

 private:
  void run() {
    for (;;) {
      std::vector<pollfd> ready{{stop_.get(), POLLIN, 0}, {listener_.get(), POLLIN, 0}};
      for (const auto& each : connections_) ready.push_back({each.fd(), each.wanted(), 0});
      poll(ready.data(), ready.size(), -1);
      if (ready[0].revents) return;
      std::size_t index = 2;
      for (auto each = connections_.begin(); each != connections_.end(); ++index)
        each = ready[index].revents && !each->serve() ? connections_.erase(each) : std::next(each);
      if (ready[1].revents)
        connections_.emplace_back(Descriptor(::accept(listener_.get(), nullptr, nullptr)));
    }
  }

  Descriptor listener_;
  Descriptor stop_;
  std::list<EchoConnection> connections_;
  std::thread thread_;
};

}  // namespace lane
