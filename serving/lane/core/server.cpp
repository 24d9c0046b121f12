// Server: one thread, an epoll, and in each turn what can be done without waiting.
#include "server.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <thread>
#include <unordered_map>
#include <utility>

#include "address.h"
#include "client.h"
#include "loop.h"
#include "outbox.h"

namespace lane {
namespace {

constexpr int accepts_per_turn = 256;
// Seconds without accepting where there is no memory or no descriptor for one more.
constexpr Seconds accept_pause = 0.1;
// Seconds between two looks at whether calls are in flight.
constexpr Seconds idle_look = 0.005;
// So many times that before a listener closes: more than wait in any backlog, unless they never
// end.
constexpr int last_accepts = 64;
// Turns before the end, for what has been answered.
constexpr int last_turns = 3;

constexpr std::uint64_t outbox_key = 0;
// Of the agenda, where listeners have no times of their own.
constexpr std::uint64_t accepting = 0;

// What this thread writes to may be gone, and Python's signals are for Python's threads. What a
// fault of the program raises stays as it is.
void block_signals() {
  sigset_t signals;
  sigfillset(&signals);
  for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP})
    sigdelset(&signals, fault);
  pthread_sigmask(SIG_SETMASK, &signals, nullptr);
}

}  // namespace

struct Server::State {
  State(ServerOptions options, std::shared_ptr<InferService> service,
        std::shared_ptr<ServerOutbox> outbox);

  // Of the I/O thread.
  void run();
  void turn(Seconds timeout);
  Seconds timeout() const;
  void dispatch(std::uint64_t key, std::uint32_t events, Seconds now);
  void deliver(Seconds now);
  bool accept_from(int listener, Seconds now);
  std::shared_ptr<const Tls> newest_tls();
  void welcome(Descriptor socket, const std::string& address, Seconds now);
  void listen(bool on);
  void end_all();
  void close_listeners(Seconds now);
  void read_on(Seconds now);
  void look(Seconds now);
  void flush(Seconds now);
  void turn_away();
  void count_connections();
  void count_parting();
  void give_way();
  template <class Act>
  void with(std::uint64_t id, Seconds now, Act act);

  // Of any thread.
  bool take_a_turn(Seconds until);

  const std::shared_ptr<InferService> service;
  const std::shared_ptr<ServerOutbox> outbox;
  const std::size_t max_connections;
  std::shared_ptr<const Tls> tls;  // under its mutex; none is none for ever
  std::mutex tls_mutex;
  std::vector<Descriptor> listeners;
  Shared shared;
  std::unordered_map<std::uint64_t, std::unique_ptr<Client>> clients;
  std::uint64_t next_id;
  std::vector<Finished> finished;
  std::vector<Client*> flushing;
  std::vector<std::uint64_t> reading;
  bool draining = false;
  Seconds accept_again = never;

  std::thread thread;
  std::atomic<std::size_t> connected{0};
  std::atomic<std::uint64_t> turned_away{0};
  std::atomic<bool> drain_asked{false};
  std::atomic<bool> parted{false};  // no client may begin anything any more
  std::atomic<bool> stop_asked{false};
  std::atomic<std::uint64_t> turns_asked{0};
  std::mutex mutex;
  std::condition_variable changed;
  std::uint64_t turns_taken = 0;  // under the mutex
  bool over = false;              // under the mutex
};

Server::State::State(ServerOptions options, std::shared_ptr<InferService> service_,
                     std::shared_ptr<ServerOutbox> outbox_)
    : service(std::move(service_)),
      outbox(std::move(outbox_)),
      max_connections(options.max_connections),
      shared{options.limits, options.upstream_path, *service, {}, {}, {}, {}, {}, 0, false},
      next_id(options.listeners.size() + 1) {
  for (const int fd : options.listeners) listeners.emplace_back(fd);
  if (options.upstream_path.size() >= sizeof(sockaddr_un::sun_path))
    throw std::runtime_error(options.upstream_path + ": too long for a Unix socket");
  if (options.tls) tls = std::make_shared<const Tls>(*options.tls);
  // So that to remember a client never needs memory.
  for (auto* list : {&shared.touched, &flushing}) list->reserve(max_connections);
  for (auto* list : {&shared.unread, &reading}) list->reserve(max_connections);
  shared.epoll.add(outbox->fd(), outbox_key, EPOLLIN | EPOLLET);
  for (std::size_t index = 0; index < listeners.size(); ++index) {
    const int fd = listeners[index].get();
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    shared.epoll.add(fd, (index + 1) * 2, 0);
  }
}

void Server::State::run() {
  block_signals();
  pthread_setname_np(pthread_self(), "lane");
  listen(true);
  while (!stop_asked.load()) turn(timeout());
  for (int count = 0; count < last_turns; ++count) turn(0);
  end_all();
  count_connections();
  std::lock_guard lock(mutex);
  over = true;
  changed.notify_all();
}

void Server::State::end_all() {
  const Seconds now = lane::now();
  for (const auto& [id, client] : clients) with(id, now, [&](Client& each) { each.end(now); });
  flush(now);
  clients.clear();
}

Seconds Server::State::timeout() const {
  if (!shared.touched.empty() || !shared.unread.empty()) return 0;
  const Seconds next = shared.agenda.next();
  return next == never ? never : std::max(0.0, next - now());
}

// Whatever goes wrong ends one client at most: only memory can be short here.
void Server::State::turn(Seconds timeout) {
  const Epoll::Ready ready = shared.epoll.wait(timeout);
  const std::uint64_t asked = turns_asked.load();
  const Seconds now = lane::now();
  deliver(now);
  for (const epoll_event& event : ready) dispatch(event.data.u64, event.events, now);
  read_on(now);
  if (drain_asked.load() && !draining) close_listeners(now);
  look(now);
  flush(now);
  if (draining && !parted.load()) count_parting();
  // Last: on a machine of few cores the batch runs at once, and what is answered would wait for it.
  service->wake();
  give_way();
  if (asked == turns_taken) return;  // nobody else writes it
  std::lock_guard lock(mutex);
  turns_taken = asked;
  changed.notify_all();
}

template <class Act>
void Server::State::with(std::uint64_t id, Seconds now, Act act) {
  const auto found = clients.find(id);
  if (found == clients.end()) return;
  try {
    act(*found->second);
  } catch (const std::exception&) {
    found->second->lose(now);
  }
}

void Server::State::deliver(Seconds now) {
  outbox->take(finished);
  for (Finished& each : finished)
    with(each.call.connection, now, [&](Client& client) {
      client.finish(each.call.stream, std::move(each.result), now);
    });
  finished.clear();
}

void Server::State::dispatch(std::uint64_t key, std::uint32_t events, Seconds now) {
  if (key == outbox_key) return;  // was delivered already
  const std::uint64_t id = key / 2;
  if (id <= listeners.size()) {
    accept_from(listeners[id - 1].get(), now);
    return;
  }
  with(id, now, [&](Client& client) {
    key % 2 ? client.upstream_ready(events, now) : client.ready(events, now);
  });
}

void Server::State::read_on(Seconds now) {
  reading.swap(shared.unread);
  for (const std::uint64_t id : reading) with(id, now, [&](Client& client) { client.read(now); });
  reading.clear();
}

// Whether there may be more.
bool Server::State::accept_from(int listener, Seconds now) {
  for (int count = 0; count < accepts_per_turn; ++count) {
    sockaddr_storage address{};
    socklen_t size = sizeof address;
    auto* from = reinterpret_cast<sockaddr*>(&address);
    Descriptor socket(accept4(listener, from, &size, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (socket) {
      welcome(std::move(socket), peer_address(address), now);
    } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
      return false;
    } else if (errno != ECONNABORTED && errno != EINTR) {
      listen(false);
      return false;
    }
  }
  return true;
}

void Server::State::welcome(Descriptor socket, const std::string& address, Seconds now) {
  if (clients.size() >= max_connections) return turn_away();
  const int on = 1;
  setsockopt(socket.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  const std::uint64_t id = next_id++;
  try {
    const auto by = newest_tls();
    auto wire = by ? by->wire(std::move(socket)) : plain_wire(std::move(socket));
    auto& client = clients[id];
    client = std::make_unique<Client>(shared, id, std::move(wire), address, now);
  } catch (const std::exception&) {  // no memory, or no room in the epoll
    turn_away();
    clients.erase(id);
  }
  count_connections();
}

std::shared_ptr<const Tls> Server::State::newest_tls() {
  std::lock_guard lock(tls_mutex);
  return tls;
}

void Server::State::turn_away() {
  ++turned_away;
  service->connection_series().turned_away.add(0, 1);
}

void Server::State::count_connections() {
  if (connected.exchange(clients.size()) == clients.size()) return;
  service->connection_series().open.set(0, static_cast<double>(clients.size()));
}

void Server::State::listen(bool on) {
  for (std::size_t index = 0; index < listeners.size(); ++index)
    shared.epoll.change(listeners[index].get(), (index + 1) * 2, on ? EPOLLIN : 0u);
  const Seconds again = on ? never : now() + accept_pause;
  shared.agenda.move(accepting, accept_again, again);
  accept_again = again;
}

// Whoever has connected is asked to go elsewhere, rather than reset.
void Server::State::close_listeners(Seconds now) {
  draining = true;
  for (Descriptor& listener : listeners) {
    for (int turns = 0; turns < last_accepts && accept_from(listener.get(), now);) ++turns;
    shared.epoll.remove(listener.get());
    listener = Descriptor();
  }
  shared.agenda.move(accepting, accept_again, never);
  accept_again = never;
  for (const auto& [id, client] : clients)
    with(id, now, [&](Client& each) { each.drain(now); });
}

void Server::State::look(Seconds now) {
  while (const auto id = shared.agenda.due(now)) {
    if (*id == accepting)
      listen(true);
    else
      with(*id, now, [&](Client& client) { client.tick(now); });
  }
}

void Server::State::flush(Seconds now) {
  flushing.swap(shared.touched);
  for (Client* client : flushing) {
    const std::uint64_t id = client->id();
    with(id, now, [&](Client& each) { each.flush(now); });
    if (client->gone()) clients.erase(id);
  }
  flushing.clear();
  count_connections();
}

// Until every client knows that it is to go, or a second has passed, what it begins is answered.
void Server::State::count_parting() {
  parted = std::none_of(clients.begin(), clients.end(),
                        [](const auto& each) { return each.second->parting(); });
}

// Lets grpcio's threads go first where they wait for this core. Otherwise each answer of theirs
// wakes this thread, which the kernel prefers to whoever wakes it, for that answer alone: with 64
// calls in flight on one core, passing a call on took this thread 26 µs that way, and takes 13 this
// way. Where another core is free, or one call alone is in flight, nothing is to be gathered.
void Server::State::give_way() {
  if (std::exchange(shared.passing, false) && shared.passed > 1) std::this_thread::yield();
}

// Has the thread take a whole turn; whether it did in time.
bool Server::State::take_a_turn(Seconds until) {
  const std::uint64_t asked = ++turns_asked;
  outbox->flush();
  std::unique_lock lock(mutex);
  const auto timeout = std::chrono::duration<double>(std::max(0.0, until - now()));
  changed.wait_for(lock, timeout, [&] { return over || turns_taken >= asked; });
  return over || turns_taken >= asked;
}

Server::Server(ServerOptions options, std::shared_ptr<InferService> service,
               std::shared_ptr<ServerOutbox> outbox)
    : state_(std::make_unique<State>(std::move(options), std::move(service), std::move(outbox))) {}

Server::~Server() { stop(); }

void Server::start() {
  state_->thread = std::thread([state = state_.get()] { state->run(); });
}

void Server::renew(const TlsOptions& options) {
  auto made = std::make_shared<const Tls>(options);
  std::lock_guard lock(state_->tls_mutex);
  state_->tls.swap(made);
}

void Server::drain() {
  state_->drain_asked = true;
  state_->outbox->flush();
}

bool Server::wait_until_idle(Seconds timeout) {
  const Seconds until = now() + timeout;
  const auto more = [&] { return state_->drain_asked.load() && !state_->parted.load(); };
  while (state_->thread.joinable() && (more() || state_->service->inside() > 0)) {
    if (now() >= until) return false;
    std::this_thread::sleep_for(std::chrono::duration<double>(idle_look));
  }
  // What was answered last has left by then, as far as sockets take it.
  return !state_->thread.joinable() || state_->take_a_turn(until);
}

void Server::stop() {
  state_->stop_asked = true;
  state_->outbox->flush();
  if (state_->thread.joinable()) state_->thread.join();
  state_->listeners.clear();
}

std::size_t Server::connections() const { return state_->connected.load(); }

std::uint64_t Server::turned_away() const { return state_->turned_away.load(); }

}  // namespace lane
