// Map in C++: each number of a frame of 32-bit floats becomes the mean of itself and its neighbours, written in place.
#include <chronetix.hpp>

int main() {
    return chronetix::run([](chronetix::Worker &worker, chronetix::Frame &frame) {
        auto in = frame.as<float>();
        chx_how how{};
        how.from = &frame.raw();
        chronetix::Loan loan = worker.reserve(frame.size(), how);
        auto out = loan.as<float>();
        for (std::size_t i = 0; i < in.size(); i++) {
            std::size_t from = i ? i - 1 : 0, to = i + 1 < in.size() ? i + 1 : i;
            float sum = 0;
            for (std::size_t at = from; at <= to; at++) sum += in[at];
            out[i] = sum / static_cast<float>(to - from + 1);
        }
        worker.commit(std::move(loan), std::nullopt, how);
    });
}
