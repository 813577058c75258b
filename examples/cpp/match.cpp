// Match two photographs by what `tiepoint export --to openvino` wrote: a port of its run.py on OpenVINO.
#include <openvino/openvino.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>

#define STB_IMAGE_IMPLEMENTATION
#include <stb/stb_image.h>
#define STB_IMAGE_RESIZE_IMPLEMENTATION
#include <stb/stb_image_resize.h>

using ov::Tensor;
using Floats = std::vector<float>;
using Rows = std::vector<int64_t>;

struct Level { Floats pixels; int width, height; int64_t start; };
struct Point { float x, y, score; int64_t level; };
struct Keypoints { Tensor positions, scales, orientations, descriptors, size; double x_factor, y_factor; };
struct Match { int64_t i, j; float score; };

template <class T> Tensor tensor(const std::vector<T>& values, const ov::Shape& shape) {
    Tensor made(ov::element::from<T>(), shape);
    std::copy(values.begin(), values.end(), made.data<T>());
    return made;
}

Tensor pick(const Tensor& from, const Rows& rows) {
    const size_t width = from.get_shape()[1];
    Tensor some(ov::element::f32, {rows.size(), width});
    for (size_t k = 0; k < rows.size(); k++)
        std::copy_n(from.data<const float>() + rows[k] * width, width, some.data<float>() + k * width);
    return some;
}

// Shrink the columns of an image (rows x columns) by triangular filters, and transpose it: (length x rows).
Floats shrink(const Floats& image, int rows, int columns, int length) {
    const float step = float(columns) / length;
    Floats small(size_t(length) * rows);
    for (int k = 0; k < length; k++) {
        const float centre = step * (k + 0.5f);
        const int first = std::max(centre - step + 0.5f, 0.f), last = std::min(int(centre + step + 0.5f), columns);
        Floats weights;
        for (int i = first; i < last; i++) weights.push_back(std::max(1 - std::abs(i - centre + 0.5f) / step, 0.f));
        const float sum = std::accumulate(weights.begin(), weights.end(), 0.f);
        for (int r = 0; r < rows; r++)
            for (int i = first; i < last; i++)
                small[size_t(k) * rows + r] += weights[i - first] / sum * image[size_t(r) * columns + i];
    }
    return small;
}

class Exported {
public:
    explicit Exported(const std::string& folder)
        : folder(folder), manifest(nlohmann::json::parse(std::ifstream(folder + "/manifest.json"))) {}

    Keypoints extract(const std::string& path, size_t most = 2048) {
        int width, height;
        uint8_t* read = stbi_load(path.c_str(), &width, &height, nullptr, 3);
        if (!read) throw std::runtime_error(path + ": " + stbi_failure_reason());
        const double factor = std::min(1.0, 1024.0 / std::max(width, height));
        const int w = std::max(1, int(std::lrint(width * factor))), h = std::max(1, int(std::lrint(height * factor)));
        std::vector<uint8_t> rgb(read, read + 3 * size_t(width) * height);
        stbi_image_free(read);
        if (factor < 1) {
            std::vector<uint8_t> small(3 * size_t(w) * h);
            stbir_resize_uint8_generic(rgb.data(), width, height, 0, small.data(), w, h, 0, 3, STBIR_ALPHA_CHANNEL_NONE,
                                       0, STBIR_EDGE_CLAMP, STBIR_FILTER_BOX, STBIR_COLORSPACE_LINEAR, nullptr);
            rgb = small;
        }
        const auto& settings = manifest["extractor"];
        std::vector<Level> levels(1, {Floats(size_t(w) * h), w, h, 0});
        for (size_t i = 0; i < levels[0].pixels.size(); i++)
            levels[0].pixels[i] = (0.299f * rgb[3 * i] + 0.587f * rgb[3 * i + 1] + 0.114f * rgb[3 * i + 2]) / 255;
        for (int level = 1; level < int(settings["pyramid_levels"]); level++) {
            const double by = std::pow(2, level / 2.0);
            const int across = std::lrint(w / by), down = std::lrint(h / by);
            if (std::min(across, down) < 8) break;
            const Level &from = levels[std::max(0, level - 2)], &before = levels.back();
            const Floats narrow = shrink(from.pixels, from.height, from.width, across);
            const Floats pixels = shrink(narrow, across, from.height, down);
            levels.push_back({pixels, across, down, before.start + int64_t(before.pixels.size())});
        }
        std::vector<Point> points;
        const int64_t deepest = settings["detection_levels"];
        for (int64_t l = 0; l < std::min(deepest, int64_t(levels.size())); l++) {
            const Level& level = levels[l];
            if (l && std::min(level.width, level.height) < 24) break;
            const auto found = run("detect", {tensor(level.pixels, {size_t(level.height), size_t(level.width)})});
            const float *at = found[0].data<float>(), *scores = found[1].data<float>();
            for (size_t i = 0; i < found[1].get_size(); i++)
                points.push_back({(at[2 * i] + 0.5f) * (float(w) / level.width) - 0.5f,
                                  (at[2 * i + 1] + 0.5f) * (float(h) / level.height) - 0.5f, scores[i], l});
        }
        const auto better = [](const Point& a, const Point& b) { return a.score > b.score; };
        std::stable_sort(points.begin(), points.end(), better);
        if (points.size() > 4 * most) points.resize(4 * most);
        const float radius = settings["nms_radius"];
        std::map<std::pair<int, int>, Point> cells;  // as wide as the radius: at most one survivor in each
        Floats positions, pixels;
        Rows level_of, places;
        for (const Point& p : points) {
            if (p.score <= float(settings["detection_threshold"]) || level_of.size() == most) break;
            const int column = std::floor(p.x / radius), line = std::floor(p.y / radius);
            bool free = true;
            for (int k = 0; k < 9; k++) {
                const auto other = cells.find({column + k % 3 - 1, line + k / 3 - 1});
                if (other == cells.end()) continue;
                const Point& q = other->second;
                free &= std::max(std::abs(p.x - q.x), std::abs(p.y - q.y)) > radius;
            }
            if (!free) continue;
            cells[{column, line}] = p;
            positions.insert(positions.end(), {p.x, p.y});
            level_of.push_back(p.level);
        }
        for (const Level& level : levels) {
            pixels.insert(pixels.end(), level.pixels.begin(), level.pixels.end());
            places.insert(places.end(), {level.start, level.width, level.height});
        }
        const Tensor at = tensor(positions, {level_of.size(), 2});
        const auto found = run("describe", {tensor(pixels, {pixels.size()}), tensor(places, {levels.size(), 3}), at,
                                            tensor(level_of, {level_of.size()})});
        const Tensor size = tensor(Floats{float(w), float(h)}, {2});
        return {at, found[1], found[2], found[0], size, double(width) / w, double(height) / h};
    }

    std::vector<Match> match(const Keypoints& a, const Keypoints& b) {
        const size_t n = a.positions.get_size() / 2, m = b.positions.get_size() / 2;
        const float *p = a.positions.data<const float>(), *q = b.positions.data<const float>();
        // One order of a pair, whatever the caller's.
        if (m < n || (m == n && std::lexicographical_compare(q, q + 2 * m, p, p + 2 * n))) {
            auto found = match(b, a);
            for (Match& one : found) std::swap(one.i, one.j);
            const auto before = [](const Match& one, const Match& other) { return one.i < other.i; };
            std::sort(found.begin(), found.end(), before);
            return found;
        }
        std::vector<Match> matches;
        if (n < 2) return matches;
        const auto& settings = manifest["matcher"];
        const auto &exits = settings["exit_confidence"], &prunes = settings["prune_matchability"];
        auto out = run("begin", {a.positions, a.scales, a.orientations, a.descriptors, a.size,
                                 b.positions, b.scales, b.orientations, b.descriptors, b.size});
        std::vector<Tensor> states = out;
        Rows index[2] = {Rows(n), Rows(m)};
        for (Rows& side : index) std::iota(side.begin(), side.end(), 0);
        for (int i = 0;; i++) {
            const bool last = i + 1 == int(settings["layers"]);
            out = run("layer" + std::to_string(i), states);
            size_t waiting = 0;
            Rows stays[2];
            for (int s = 0; s < 2; s++) {
                states[3 * s] = out[s * out.size() / 2];
                if (last) continue;
                const float *matchability = out[3 * s + 1].data<float>(), *confidence = out[3 * s + 2].data<float>();
                for (size_t k = 0; k < index[s].size(); k++) {
                    const bool waits = !exits.is_null() && confidence[k] <= float(exits[i]);
                    waiting += waits;
                    if (waits || prunes.is_null() || matchability[k] > float(prunes[i])) stays[s].push_back(k);
                }
            }
            if (last || (!exits.is_null() && 1 - double(waiting) / (n + m) > double(settings["exit_share"]))) {
                const Tensor threshold = tensor(Floats{float(settings["match_threshold"])}, {});
                out = run("assign" + std::to_string(i), {states[0], states[3], threshold});
                const int64_t* pairs = out[0].data<int64_t>();
                for (size_t k = 0; k < out[1].get_size(); k++)
                    matches.push_back({index[0][pairs[2 * k]], index[1][pairs[2 * k + 1]], out[1].data<float>()[k]});
                return matches;
            }
            for (int s = 0; s < 2; s++) {
                for (int part = 0; part < 3; part++) states[3 * s + part] = pick(states[3 * s + part], stays[s]);
                for (int64_t& k : stays[s]) k = index[s][k];
                index[s] = stays[s];
            }
            if (index[0].empty() || index[1].empty()) return matches;
        }
    }

private:
    std::string folder;
    nlohmann::json manifest;
    ov::Core core;
    std::map<std::string, ov::InferRequest> loaded;

    std::vector<Tensor> run(const std::string& name, const std::vector<Tensor>& inputs) {
        if (!loaded.count(name)) {
            const std::string file = manifest["graphs"][name]["file"];
            const bool reduced = manifest["precision"] == "bfloat16" && name.find("layer") == 0;
            const auto precision = ov::hint::inference_precision(reduced ? ov::element::bf16 : ov::element::f32);
            loaded[name] = core.compile_model(folder + "/" + file, "CPU", precision).create_infer_request();
        }
        ov::InferRequest& request = loaded[name];
        for (size_t i = 0; i < inputs.size(); i++) request.set_input_tensor(i, inputs[i]);
        request.infer();
        std::vector<Tensor> outputs;  // copies: the request writes into its own again
        for (size_t i = 0; i < manifest["graphs"][name]["outputs"].size(); i++) {
            const Tensor from = request.get_output_tensor(i);
            outputs.emplace_back(from.get_element_type(), from.get_shape());
            from.copy_to(outputs.back());
        }
        return outputs;
    }
};

int main(int count, char** arguments) try {
    if (count != 4) throw std::runtime_error("usage: match EXPORTED A.jpg B.jpg");
    Exported exported(arguments[1]);
    const Keypoints a = exported.extract(arguments[2]), b = exported.extract(arguments[3]);
    const auto print = [](const Keypoints& image, int64_t k) {
        const float* at = image.positions.data<const float>() + 2 * k;
        std::printf("%.2f %.2f ", (at[0] + 0.5) * image.x_factor - 0.5, (at[1] + 0.5) * image.y_factor - 0.5);
    };
    for (const Match& match : exported.match(a, b)) {
        print(a, match.i);
        print(b, match.j);
        std::printf("%.3f\n", match.score);
    }
} catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
}
