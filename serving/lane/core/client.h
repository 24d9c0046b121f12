// Client: one client's socket, its Connection, and its way to grpcio's server.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "channel.h"
#include "connection.h"
#include "loop.h"
#include "relay.h"

namespace lane {

class Client;

// What the clients of a loop have in common; of the I/O thread.
struct Shared {
  Limits limits;
  std::string upstream_path;
  InferService& service;
  Epoll epoll;
  Agenda agenda;
  Buffers buffers;
  std::vector<Client*> touched;       // to be flushed, once each
  std::vector<std::uint64_t> unread;  // ids of those who may have more to read without being asked
  std::size_t passed = 0;  // calls that are grpcio's server's to answer
  bool passing = false;    // something went there, or came from there, in this turn
};

class Client {
 public:
  // `id` times two is the key of its socket in the epoll, one more that of its way to grpcio's.
  Client(Shared& shared, std::uint64_t id, std::unique_ptr<Wire> wire, std::string address,
         Seconds now);
  ~Client();
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  std::uint64_t id() const { return id_; }
  void ready(std::uint32_t events, Seconds now);
  void upstream_ready(std::uint32_t events, Seconds now);
  void read(Seconds now);
  void finish(std::int32_t stream, std::variant<Reply, Refusal> result, Seconds now);
  void drain(Seconds now);
  // As the connection's.
  bool parting() const;
  void end(Seconds now);
  // Acts on what is due.
  void tick(Seconds now);
  // Sends what there is; of those in Shared::touched.
  void flush(Seconds now);
  // It is over: to be destroyed after the flush.
  bool gone() const { return gone_; }
  void lose(Seconds now);

 private:
  class Link;

  void open(Seconds now);
  void touch(Seconds now);
  void schedule(Seconds when);
  void look_by(Seconds when);  // or earlier
  bool reads() const;
  bool send(Seconds now);
  void settle_upstream();
  void count_passed(std::size_t calls);
  void leave(Seconds now);
  Seconds due(Seconds now);
  std::unique_ptr<Upstream> connect(Downstream& downstream);

  Shared& shared_;
  const std::uint64_t id_;
  std::string address_;
  const Seconds accepted_;
  Seconds now_;  // of this turn, for what the connection asks meanwhile
  Channel channel_;
  std::shared_ptr<Relay> relay_;
  std::unique_ptr<Connection> connection_;  // once a handshake is over
  Seconds scheduled_ = never;
  Seconds leave_by_ = never;  // finished, and the client may have more to say until then
  bool touched_ = false;
  std::size_t passed_ = 0;    // of Shared::passed
  bool upstream_output_ = false;  // since its last flush
  bool deaf_ = false;    // the connection wants to hear no more
  bool unread_ = false;  // the last read filled the buffer
  bool draining_ = false;
  bool gone_ = false;
};

}  // namespace lane
