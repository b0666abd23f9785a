// The label map of a picture: segment model.onnx picture.ppm labels.pgm   (PPM of RGB or PGM of grey, 8 bit)
// g++ -std=c++17 segment.cpp -I $ONNXRUNTIME/include -L $ONNXRUNTIME/lib -l onnxruntime -o segment
#include <onnxruntime_c_api.h>

#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

static const OrtApi* ort = OrtGetApiBase()->GetApi(ORT_API_VERSION);

static void check(OrtStatus* status) {
  if (status == nullptr) return;
  std::cerr << ort->GetErrorMessage(status) << "\n";
  std::exit(1);
}

int main(int count, char** arguments) {
  std::ifstream picture(count == 4 ? arguments[2] : "", std::ios::binary);
  std::string magic;
  int64_t width = 0, height = 0, brightest = 0;
  if (!(picture >> magic >> width >> height >> brightest) || brightest != 255 || width < 1 || height < 1) {
    std::cerr << "usage: segment model.onnx picture.ppm labels.pgm\n";
    return 2;
  }
  const int64_t shape[] = {1, height, width, magic == "P6" ? 3 : 1};
  std::vector<uint8_t> pixels(height * width * shape[3]);
  picture.get();  // the line break behind the header
  picture.read(reinterpret_cast<char*>(pixels.data()), pixels.size());

  OrtEnv* environment;
  OrtSessionOptions* options;
  OrtSession* session;  // make it once, and let it segment all frames
  OrtMemoryInfo* memory;
  check(ort->CreateEnv(ORT_LOGGING_LEVEL_WARNING, "segment", &environment));
  check(ort->CreateSessionOptions(&options));
  check(ort->CreateSession(environment, arguments[1], options, &session));
  check(ort->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));

  OrtValue *frame = nullptr, *labels = nullptr;
  check(ort->CreateTensorWithDataAsOrtValue(memory, pixels.data(), pixels.size(), shape, 4,
                                            ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, &frame));
  const char *inputs[] = {"frame"}, *outputs[] = {"labels"};
  check(ort->Run(session, nullptr, inputs, &frame, 1, outputs, 1, &labels));
  void* values;
  check(ort->GetTensorMutableData(labels, &values));
  std::ofstream result(arguments[3], std::ios::binary);
  result << "P5 " << width << " " << height << " 255\n";
  result.write(static_cast<char*>(values), height * width);
  return result.flush() ? 0 : 1;
}
