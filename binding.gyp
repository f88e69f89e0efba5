{
  "targets": [
    {
      "target_name": "gemma_native",
      "type": "none",
      "actions": [
        {
          "action_name": "cmake",
          "inputs": ["CMakeLists.txt"],
          "outputs": ["build/Release/gemma_native.node"],
          "action": ["node", "scripts/build-native.mjs"],
          "message": "Building with CMake"
        }
      ]
    }
  ]
}
