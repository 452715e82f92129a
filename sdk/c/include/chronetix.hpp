/* The C++20 face of libchronetix: the functions of chronetix.h with owners, spans and exceptions. Header only.
 *
 *   int main() {
 *       return chronetix::run([](chronetix::Worker &worker, const chronetix::Frame &frame) { worker.send(frame.data()); });
 *   }
 *
 * Rules: a Frame gives its credit back when it is destroyed, a Loan that is not committed is cancelled, and neither may
 * outlive its Worker. All of them move and none copies. What fails raises Error, whose code is of the catalogue; a
 * consumer that has gone raises Gone, which ends a node without a fault. Everything of a worker belongs to one thread.
 */
#ifndef CHRONETIX_HPP
#define CHRONETIX_HPP

#include <algorithm>
#include <chrono>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <memory>
#include <new>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>

#include "chronetix.h"

namespace chronetix {

using Bytes = std::span<const std::byte>;

/* A result of the C interface that is negative; `code` of the catalogue is positive. */
class Error : public std::runtime_error {
  public:
    Error(int result, const std::string &what) : std::runtime_error(what), result_(result) {}
    int result() const noexcept { return result_; }
    int code() const noexcept { return result_ < CHX_FAILED ? -result_ : 0; }
    std::string_view name() const noexcept {
        const char *name = chx_error_name(result_);
        return name ? name : "";
    }

  private:
    int result_;
};

/* No consumer is left. */
class Gone : public Error {
    using Error::Error;
};

template <typename T>
concept Plain = std::is_trivially_copyable_v<T>;

/* The bytes of a contiguous range of plain objects, or of a text. */
template <Plain T, std::size_t N>
Bytes bytes(std::span<T, N> of) noexcept {
    return std::as_bytes(of);
}
inline Bytes bytes(std::string_view text) noexcept { return std::as_bytes(std::span(text.data(), text.size())); }

/* ---- values ----------------------------------------------------------------------------------------------------- */

/* A decoded CBOR value, or nothing: every question may be asked of it. It points into what it was read from. */
class Value {
  public:
    Value(const chx_value *value = nullptr) noexcept : value_(value) {}
    explicit operator bool() const noexcept { return value_ != nullptr; }
    enum chx_type type() const noexcept { return chx_type_of(value_); }
    std::size_t size() const noexcept { return chx_size_of(value_); }
    Value operator[](const char *key) const noexcept { return chx_get(value_, key); }
    Value operator[](const std::string &key) const noexcept { return chx_get(value_, key.c_str()); }
    Value at(std::size_t index) const noexcept { return chx_at(value_, index); }
    bool boolean(bool otherwise = false) const noexcept { return chx_bool(value_, otherwise); }
    std::int64_t integer(std::int64_t otherwise = 0) const noexcept { return chx_int(value_, otherwise); }
    double number(double otherwise = 0) const noexcept { return chx_number(value_, otherwise); }
    std::string_view text(std::string_view otherwise = {}) const noexcept {
        const char *text = chx_text(value_, nullptr);
        return text ? std::string_view(text, size()) : otherwise;
    }
    Bytes bytes() const noexcept {
        const std::uint8_t *data = chx_bytes(value_);
        return data ? std::as_bytes(std::span(data, size())) : Bytes();
    }
    const chx_value *get() const noexcept { return value_; }

  private:
    const chx_value *value_;
};

/* Owns what was decoded. */
class Document : public Value {
  public:
    explicit Document(Bytes data) : Document(decode(data)) {}
    Document(Document &&other) noexcept = default;
    Document &operator=(Document &&other) noexcept = default;

  private:
    struct Free {
        void operator()(const chx_value *value) const noexcept { chx_free_value(value); }
    };
    using Owner = std::unique_ptr<const chx_value, Free>;

    explicit Document(Owner owner) : Value(owner.get()), owner_(std::move(owner)) {}
    static Owner decode(Bytes data) {
        char why[128] = "";
        Owner owner(chx_decode(data.data(), data.size(), why, sizeof why));
        if (!owner) throw Error(-CHX_E_MALFORMED_CBOR, why);
        return owner;
    }

    Owner owner_;
};

/* Writes CBOR: Writer().map(1).text("n").integer(3). */
class Writer {
  public:
    Writer() = default;
    Writer(Writer &&other) noexcept : writer_(std::exchange(other.writer_, {})) {}
    Writer &operator=(Writer &&other) noexcept {
        std::swap(writer_, other.writer_);
        return *this;
    }
    ~Writer() { chx_free_writer(&writer_); }
    Writer &null() { return chx_write_null(&writer_), *this; }
    Writer &boolean(bool value) { return chx_write_bool(&writer_, value), *this; }
    Writer &integer(std::int64_t value) { return chx_write_int(&writer_, value), *this; }
    Writer &count(std::uint64_t value) { return chx_write_count(&writer_, value), *this; }
    Writer &number(double value) { return chx_write_float(&writer_, value), *this; }
    Writer &text(std::string_view text) { return chx_write_text_of(&writer_, text.data(), text.size()), *this; }
    Writer &bytes(Bytes data) { return chx_write_bytes(&writer_, data.data(), data.size()), *this; }
    Writer &list(std::size_t entries) { return chx_write_list(&writer_, entries), *this; }
    Writer &map(std::size_t entries) { return chx_write_map(&writer_, entries), *this; }
    Writer &value(Value value) { return chx_write_value(&writer_, value.get()), *this; }
    /* Raises std::bad_alloc if memory was exhausted meanwhile. */
    Bytes data() const {
        if (writer_.failed) throw std::bad_alloc();
        return std::as_bytes(std::span(chx_written(&writer_), writer_.size));
    }

  private:
    chx_writer writer_{};
};

/* ---- frames ----------------------------------------------------------------------------------------------------- */

/* A frame that was taken; its credit returns with its end. */
class Frame {
  public:
    Frame(chx_worker *worker, const chx_frame &frame) noexcept : worker_(worker), frame_(frame) {}
    Frame(Frame &&other) noexcept : worker_(std::exchange(other.worker_, nullptr)), frame_(other.frame_) {}
    Frame &operator=(Frame &&other) noexcept {
        if (this != &other) {
            release();
            worker_ = std::exchange(other.worker_, nullptr);
            frame_ = other.frame_;
        }
        return *this;
    }
    ~Frame() { release(); }

    Bytes data() const noexcept { return {static_cast<const std::byte *>(frame_.data), frame_.size}; }
    std::size_t size() const noexcept { return frame_.size; }
    /* The payload as plain objects; an empty span if it is no whole number of them. Payloads are aligned to 64 bytes. */
    template <Plain T>
    std::span<const T> as() const noexcept {
        if (frame_.size % sizeof(T)) return {};
        return {static_cast<const T *>(frame_.data), frame_.size / sizeof(T)};
    }
    Bytes meta() const noexcept { return {static_cast<const std::byte *>(frame_.meta), frame_.meta_size}; }
    std::string_view route() const noexcept { return frame_.route; }
    std::string_view peer() const noexcept { return frame_.peer; }
    std::string_view content_type() const noexcept { return frame_.content_type; }
    std::uint64_t seq() const noexcept { return frame_.seq; }
    bool redelivered() const noexcept { return frame_.redelivered; }
    const chx_frame &raw() const noexcept { return frame_; }
    /* Give it back now. Idempotent. */
    void release() noexcept {
        if (worker_) chx_release(std::exchange(worker_, nullptr), &frame_);
    }
    /* It is not given back: a successor gets it again. */
    void abandon() noexcept { worker_ = nullptr; }

  private:
    chx_worker *worker_;
    chx_frame frame_;
};

/* Memory for a frame that is filled in place; one that is not committed is cancelled. */
class Loan {
  public:
    Loan(chx_worker *worker, const chx_loan &loan) noexcept : worker_(worker), loan_(loan) {}
    Loan(Loan &&other) noexcept : worker_(other.worker_), loan_(std::exchange(other.loan_, {})) {}
    Loan &operator=(Loan &&other) noexcept {
        std::swap(worker_, other.worker_);
        std::swap(loan_, other.loan_);
        return *this;
    }
    ~Loan() {
        if (loan_.claim) chx_cancel(worker_, &loan_);
    }
    std::span<std::byte> data() noexcept { return {static_cast<std::byte *>(loan_.data), loan_.size}; }
    template <Plain T>
    std::span<T> as() noexcept {
        return {static_cast<T *>(loan_.data), loan_.size / sizeof(T)};
    }
    chx_loan *raw() noexcept { return &loan_; }

  private:
    chx_worker *worker_;
    chx_loan loan_;
};

/* ---- a worker --------------------------------------------------------------------------------------------------- */

struct Start {};
struct End {};
struct Room {};
using Event = std::variant<std::monostate, Start, Frame, chx_tick, chx_message, Room, End>;

class Worker {
  public:
    /* Be the worker that the daemon has started. Raises Error. */
    static Worker inherit() {
        chx_worker *raw = nullptr;
        int result = chx_worker_inherit(&raw);
        Worker worker(raw);
        worker.check(result);
        return worker;
    }

    std::string_view flow() const noexcept { return chx_flow(raw()); }
    std::string_view node() const noexcept { return chx_node(raw()); }
    Value config() const noexcept { return chx_config(raw()); }
    Value params() const noexcept { return chx_params(raw()); }
    Value handover() const noexcept { return chx_handover(raw()); }
    std::uint64_t resume_after() const noexcept { return chx_resume_after(raw()); }
    bool stopping() const noexcept { return chx_stopping(raw()); }
    int descriptor() const noexcept { return chx_worker_fd(raw()); }
    chx_worker *raw() const noexcept { return worker_.get(); }

    /* The next event; std::monostate when the time is up. No time: waits for ever. */
    Event next(std::optional<std::chrono::nanoseconds> timeout = std::nullopt) {
        chx_event event;
        int kind = chx_next(raw(), timeout ? std::max<std::int64_t>(timeout->count(), 0) : CHX_FOREVER, &event);
        check(kind);
        switch (kind) {
            case CHX_START: return Start{};
            case CHX_FRAME: return Event(std::in_place_type<Frame>, raw(), event.frame);
            case CHX_TICK: return event.tick;
            case CHX_MESSAGE:
            case CHX_REPLY: return event.message;
            case CHX_ROOM: return Room{};
            case CHX_END: return End{};
            default: return std::monostate{};
        }
    }

    /* Sends to every output, or as `how` says. Raises Gone, Error. */
    void send(Bytes data, const chx_how &how = {}) { check(chx_send(raw(), data.data(), data.size(), &how)); }
    void send(std::string_view text, const chx_how &how = {}) { send(bytes(text), how); }
    /* Without waiting: false if there is no credit or no room now. */
    bool try_send(Bytes data, chx_how how = {}) {
        how.may_not_wait = true;
        int result = chx_send(raw(), data.data(), data.size(), &how);
        if (result == CHX_AGAIN) return false;
        check(result);
        return true;
    }
    Loan reserve(std::size_t size, const chx_how &how = {}) {
        chx_loan loan;
        check(chx_reserve(raw(), size, &how, &loan));
        return Loan(raw(), loan);
    }
    /* Sends the first `size` bytes of the loan, by default all. */
    void commit(Loan loan, std::optional<std::size_t> size = std::nullopt, const chx_how &how = {}) {
        check(chx_commit(raw(), loan.raw(), size.value_or(loan.raw()->size), &how));
    }

    void publish(const std::string &topic, Bytes data, const char *content_type = "application/octet-stream") {
        chx_envelope envelope{};
        envelope.topic = topic.c_str();
        envelope.content_type = content_type;
        check(chx_publish(raw(), &envelope, data.data(), data.size()));
    }
    void subscribe(const std::string &topic) { check(chx_subscribe(raw(), topic.c_str())); }
    void unsubscribe(const std::string &topic) { check(chx_unsubscribe(raw(), topic.c_str())); }
    /* Asks and waits for the answer; its `failure` says why there is none. Valid until the next event. */
    chx_message request(const std::string &topic, Bytes data, std::chrono::nanoseconds timeout = std::chrono::seconds(5)) {
        chx_envelope envelope{};
        envelope.topic = topic.c_str();
        envelope.content_type = "application/octet-stream";
        std::uint64_t id;
        chx_message answer;
        check(chx_request(raw(), &envelope, data.data(), data.size(), timeout.count(), &id));
        check(chx_await(raw(), id, &answer));
        return answer;
    }
    void reply(const chx_message &message, Bytes data, const char *content_type = "application/octet-stream") {
        check(chx_reply(raw(), &message, data.data(), data.size(), content_type));
    }
    void log(const char *level, const std::string &text) { check(chx_log(raw(), level, "%s", text.c_str())); }

    void finish(Bytes result = {}) { check(chx_finish(raw(), result.data(), result.size())); }
    int fault(const char *phase, const char *error, const std::string &message) noexcept {
        return chx_fault(raw(), phase, error, message.c_str());
    }

  private:
    struct Close {
        void operator()(chx_worker *worker) const noexcept { chx_worker_close(worker); }
    };

    explicit Worker(chx_worker *worker) noexcept : worker_(worker) {}
    void check(int result) const {
        if (result == CHX_GONE) throw Gone(result, chx_error(raw()));
        if (result < 0) throw Error(result, chx_error(raw()));
    }

    std::unique_ptr<chx_worker, Close> worker_;
};

/* ---- callbacks -------------------------------------------------------------------------------------------------- */

/* All may be empty. What one of them raises is the node's fault, but for Gone. */
struct Plugin {
    std::function<void(Worker &)> start{};
    std::function<bool(Worker &)> produce{}; /* of a source, again and again: false when there are no more items */
    std::function<void(Worker &, Frame &)> frame{}; /* moves the frame out to keep it */
    std::function<void(Worker &, const chx_tick &)> tick{};
    std::function<void(Worker &, const chx_message &)> message{};
    std::function<std::optional<Writer>(Worker &)> stop{}; /* the node's result, in CBOR */
};

namespace detail {

/* What chx_worker_run calls: the plugin's functions, with their exceptions as results. */
struct Calls {
    Worker &worker;
    const Plugin &plugin;

    template <class Work>
    int guarded(Work work) noexcept {
        try {
            return work();
        } catch (const Error &error) {
            return error.result() == CHX_FAILED ? chx_fail(worker.raw(), "%s", error.what()) : error.result();
        } catch (const std::exception &error) {
            return chx_fail(worker.raw(), "%s", error.what());
        } catch (...) {
            return chx_fail(worker.raw(), "an exception that is no std::exception");
        }
    }
    template <class Function, class... Arguments>
    int call(const Function &function, Arguments &&...arguments) noexcept {
        if (!function) return 0;
        return guarded([&] { return function(worker, std::forward<Arguments>(arguments)...), 0; });
    }

    static Calls &of(void *state) noexcept { return *static_cast<Calls *>(state); }
    static int start(chx_worker *, void *state) { return of(state).call(of(state).plugin.start); }
    static int produce(chx_worker *, void *state) {
        Calls &calls = of(state);
        return calls.guarded([&] { return calls.plugin.produce(calls.worker) ? 0 : int{CHX_DONE}; });
    }
    static int frame(chx_worker *raw, const chx_frame *taken, void *state) {
        Calls &calls = of(state);
        chx_frame kept;
        chx_keep(raw, taken, &kept);
        Frame frame(raw, kept);
        int result = calls.call(calls.plugin.frame, frame);
        if (result < 0) frame.abandon();
        return result;
    }
    static int tick(chx_worker *, const chx_tick *tick, void *state) { return of(state).call(of(state).plugin.tick, *tick); }
    static int message(chx_worker *, const chx_message *message, void *state) {
        return of(state).call(of(state).plugin.message, *message);
    }
    static int stop(chx_worker *raw, void *state) {
        Calls &calls = of(state);
        if (!calls.plugin.stop) return 0;
        return calls.guarded([&] {
            std::optional<Writer> result = calls.plugin.stop(calls.worker);
            return result ? chx_set_result(raw, result->data().data(), result->data().size()) : 0;
        });
    }
};

} // namespace detail

/* Runs `plugin` to the node's end; what main() returns: 0 finished, 1 failed, 70 the daemon is gone. */
inline int run(Worker &worker, const Plugin &plugin) {
    using detail::Calls;
    Calls calls{worker, plugin};
    chx_plugin raw{};
    raw.start = Calls::start;
    raw.produce = plugin.produce ? Calls::produce : nullptr;
    raw.frame = Calls::frame;
    raw.tick = Calls::tick;
    raw.message = Calls::message;
    raw.stop = Calls::stop;
    return chx_worker_run(worker.raw(), &raw, &calls);
}

inline int run(const Plugin &plugin) {
    try {
        Worker worker = Worker::inherit();
        return run(worker, plugin);
    } catch (const Error &error) {
        std::fprintf(stderr, "chronetix worker: %s\n", error.what());
        return chx_exit_code(error.result());
    }
}

/* A node whose whole work is this: called for each frame. */
template <std::invocable<Worker &, Frame &> OnFrame>
int run(OnFrame on_frame) {
    Plugin plugin;
    plugin.frame = std::move(on_frame);
    return run(plugin);
}

} // namespace chronetix

#endif
