// The C++ face: roles as in worker.c, for what only this face has: frames that move, loans that cancel themselves,
// exceptions, spans.
#include <chronetix.hpp>
#include <deque>

using chronetix::Bytes, chronetix::Frame, chronetix::Loan, chronetix::Plugin, chronetix::Worker, chronetix::Writer;

namespace {

// Keeps the last frames, and gives them back in their own time.
Plugin late(std::deque<Frame> &kept) {
    Plugin plugin;
    plugin.frame = [&kept](Worker &worker, Frame &frame) {
        worker.send(frame.data());
        kept.push_back(std::move(frame));
        if (kept.size() > 5) kept.pop_front();
    };
    plugin.stop = [&kept](Worker &) { return kept.clear(), std::nullopt; };
    return plugin;
}

Plugin in_place() {
    Plugin plugin;
    plugin.frame = [](Worker &worker, Frame &frame) {
        { Loan given_back = worker.reserve(frame.size() + 1); }
        Loan loan = worker.reserve(frame.size() + 64);
        std::copy(frame.data().begin(), frame.data().end(), loan.data().begin());
        worker.commit(std::move(loan), frame.size());
    };
    return plugin;
}

Plugin raises() {
    Plugin plugin;
    plugin.frame = [](Worker &, Frame &) { throw std::runtime_error("raised over a frame"); };
    return plugin;
}

Plugin counts() {
    auto sum = std::make_shared<std::uint64_t>();
    Plugin plugin;
    plugin.frame = [sum](Worker &, Frame &frame) {
        for (std::uint64_t number : frame.as<std::uint64_t>()) *sum += number;
    };
    plugin.stop = [sum](Worker &) -> std::optional<Writer> {
        Writer result;
        result.count(*sum);
        return result;
    };
    return plugin;
}

Plugin numbers() {
    auto next = std::make_shared<std::uint64_t>();
    Plugin plugin;
    plugin.produce = [next](Worker &worker) {
        if (*next >= static_cast<std::uint64_t>(worker.params()["count"].integer())) return false;
        ++*next;
        worker.send(chronetix::bytes(std::span(next.get(), 1)));
        return true;
    };
    return plugin;
}

// A loop of its own over events.
int visits(Worker &worker) {
    for (;;) {
        auto event = worker.next();
        if (auto *frame = std::get_if<Frame>(&event)) {
            chx_how how{};
            how.from = &frame->raw();
            worker.send(frame->data(), how);
        }
        if (std::holds_alternative<chronetix::End>(event)) return worker.finish(), 0;
    }
}

} // namespace

int main() {
    try {
        Worker worker = Worker::inherit();
        std::string_view role = worker.params()["role"].text();
        std::deque<Frame> kept;
        if (role == "own_loop") return visits(worker);
        return chronetix::run(worker, role == "late"     ? late(kept)
                                      : role == "raises" ? raises()
                                      : role == "counts" ? counts()
                                      : role == "items"  ? numbers()
                                                         : in_place());
    } catch (const chronetix::Error &error) {
        return std::fprintf(stderr, "%s\n", error.what()), chx_exit_code(error.result());
    }
}
