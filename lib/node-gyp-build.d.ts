declare module 'node-gyp-build' {
  /** Loads the addon of the package in a folder: build/Release, else the prebuild that fits. */
  function load(root: string): unknown;
  namespace load {
    /** The path of what `load` would load. */
    function resolve(root: string): string;
  }
  export = load;
}
