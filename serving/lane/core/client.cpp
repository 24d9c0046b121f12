// Client: moves bytes between a socket, its Connection, and its way to grpcio's server.
#include "client.h"

#include <algorithm>
#include <optional>
#include <utility>

namespace lane {
namespace {

// Whoever was busy is looked at again after so many seconds: limits are not more exact than that.
constexpr Seconds look_again = 0.1;
// How long a client that was told goodbye may go on until its socket is closed. Closing a socket
// that something still arrives at makes the kernel reset it, and answers on their way are lost.
constexpr Seconds linger = 1;

}  // namespace

// What a connection passes on goes this way. The connection may let go of it at any time.
class Client::Link : public Upstream {
 public:
  explicit Link(std::shared_ptr<Relay> relay) : relay_(std::move(relay)) {}

  void open(std::int32_t stream, Headers headers, bool end) override {
    relay_->upstream().open(stream, std::move(headers), end);
  }
  void data(std::int32_t stream, std::string_view bytes, bool end) override {
    relay_->upstream().data(stream, bytes, end);
  }
  void reset(std::int32_t stream, std::uint32_t error) override {
    relay_->upstream().reset(stream, error);
  }
  void taken(std::int32_t stream, std::size_t bytes) override {
    relay_->upstream().taken(stream, bytes);
  }

 private:
  std::shared_ptr<Relay> relay_;
};

Client::Client(Shared& shared, std::uint64_t id, std::unique_ptr<Wire> wire, std::string address,
               Seconds now)
    : shared_(shared),
      id_(id),
      address_(std::move(address)),
      accepted_(now),
      now_(now),
      channel_(shared.epoll, shared.buffers, id * 2, std::move(wire)) {
  if (channel_.wire().ready()) open(now);
  touch(now);
}

Client::~Client() {
  touched_ = true;  // whatever it lets go of has nothing to ask for any more
  connection_.reset();
  relay_.reset();
  count_passed(0);
  schedule(never);
}

void Client::open(Seconds now) {
  Peer peer{std::move(address_), channel_.wire().identity()};
  connection_ = std::make_unique<Connection>(
      id_, std::move(peer), shared_.limits, shared_.service,
      [this](Downstream& downstream) { return connect(downstream); }, now);
  if (draining_) connection_->drain();
}

std::unique_ptr<Upstream> Client::connect(Downstream& downstream) {
  relay_ = std::make_shared<Relay>(
      shared_.epoll, shared_.buffers, id_ * 2 + 1, shared_.upstream_path, downstream,
      [this] {
        upstream_output_ = shared_.passing = true;
        touch(now_);
      },
      now_);
  return std::make_unique<Link>(relay_);
}

void Client::touch(Seconds now) {
  now_ = now;
  look_by(now + look_again);
  if (touched_) return;
  shared_.touched.push_back(this);
  touched_ = true;
}

void Client::schedule(Seconds when) {
  shared_.agenda.move(id_, scheduled_, when);
  scheduled_ = when;
}

void Client::look_by(Seconds when) {
  if (scheduled_ > when) schedule(when);
}

void Client::lose(Seconds now) {
  gone_ = true;
  touch(now);
}

void Client::ready(std::uint32_t events, Seconds now) {
  touch(now);
  if (events & EPOLLOUT) channel_.writable();
  // Both ways are closed: nobody is left to answer.
  if (events & (EPOLLERR | EPOLLHUP)) return lose(now);
  // A handshake is gone on with by reading, whatever it waited for.
  if ((events & EPOLLIN) || !connection_) read(now);
}

void Client::read(Seconds now) {
  touch(now);
  if (gone_ || !reads()) return;
  const ssize_t count = channel_.read();
  if (!connection_ && leave_by_ == never && channel_.wire().ready()) open(now);
  if (count == Wire::again) return;
  if (count <= 0) return lose(now);
  const auto size = static_cast<std::size_t>(count);
  unread_ = size == Buffers::read_bytes;
  if (!connection_) return;
  deaf_ = !connection_->receive(shared_.buffers.input.data(), size, now);
}

bool Client::reads() const {
  if (!connection_) return true;  // a handshake, or the end
  return !deaf_ && !channel_.congested() && !connection_->congested();
}

void Client::upstream_ready(std::uint32_t events, Seconds now) {
  touch(now);
  shared_.passing = true;
  // The connection may let go of it meanwhile.
  const std::shared_ptr<Relay> relay = relay_;
  if (relay) relay->ready(events);
}

void Client::finish(std::int32_t stream, std::variant<Reply, Refusal> result, Seconds now) {
  touch(now);
  if (connection_) connection_->finish(stream, std::move(result));
}

void Client::drain(Seconds now) {
  touch(now);
  draining_ = true;
  if (connection_) connection_->drain();
}

bool Client::parting() const { return connection_ && connection_->parting(); }

void Client::end(Seconds now) {
  touch(now);
  if (connection_) connection_->end();
}

void Client::tick(Seconds now) {
  // What is still to be flushed may begin waits that nobody knows of yet.
  const Seconds longest = touched_ ? look_again : 3600;
  touch(now);
  schedule(now + look_again);  // also if what follows throws
  // Never at once again: what is due and stays due must not keep the thread busy. Never without a
  // time, as one more entry needs memory.
  schedule(std::clamp(due(now), now + 1e-3, now + longest));
}

Seconds Client::due(Seconds now) {
  Seconds next = never;
  const auto ends = [&](Seconds when, std::optional<Dropped> why) {
    if (now >= when && !gone_) {
      if (why) shared_.service.connection_series().dropped(*why);
      lose(now);
    }
    next = std::min(next, when);
  };
  if (leave_by_ != never)
    ends(leave_by_, std::nullopt);
  else if (!connection_)
    ends(accepted_ + shared_.limits.handshake_timeout, Dropped::handshake);
  if (channel_.blocked())
    ends(channel_.progress() + shared_.limits.stall_timeout, Dropped::stalled);
  if (relay_) next = std::min(next, relay_->tick(now));
  if (connection_ && !gone_) next = std::min(next, connection_->tick(now));
  return next;
}

// It counts as touched until it is done: who is gone must not be in the next turn's list.
void Client::flush(Seconds now) {
  if (gone_) return;
  const bool more = send(now);
  if (channel_.broken()) return lose(now);
  // So may what was sent just now, after this turn's look.
  if (channel_.took() || channel_.blocked()) look_by(now + look_again);
  if (connection_ && connection_->finished() && !channel_.blocked()) leave(now);
  count_passed(relay_ ? relay_->upstream().calls() : 0);
  channel_.watch(reads());
  if (unread_ && reads()) {
    shared_.unread.push_back(id_);
    unread_ = false;
  }
  touched_ = false;
  if (more) touch(now);
}

// What goes to the client may let more come from upstream, and the other way round.
bool Client::send(Seconds now) {
  if (!connection_) return false;
  bool more = false;
  for (int round = 0; round < 2; ++round) {
    upstream_output_ = false;
    more = relay_ && relay_->flush(now);
    settle_upstream();
    more = channel_.send(*connection_, now) || more;
    if (!relay_) break;
  }
  return more || upstream_output_;
}

void Client::settle_upstream() {
  if (!relay_ || !relay_->lost()) return;
  const std::shared_ptr<Relay> lost = std::move(relay_);
  lost->end();
}

void Client::count_passed(std::size_t calls) {
  shared_.passed += calls - passed_;
  passed_ = calls;
}

void Client::leave(Seconds now) {
  channel_.wire().finish();
  leave_by_ = now + linger;
  look_by(leave_by_);
  connection_.reset();
  relay_.reset();
}

}  // namespace lane
