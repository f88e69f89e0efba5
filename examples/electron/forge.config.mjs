// npx electron-forge package | make
export default {
  packagerConfig: {
    // What the operating system opens by itself must lie outside the archive: addons, sharp's libraries, models.
    asar: { unpack: '{**/*.node,**/node_modules/@img/**,**/node_modules/gemma-native/models/**}' },
    ignore: [/^\/release/, /^\/test/],
  },
  rebuildConfig: { onlyModules: [] }, // Node-API binaries serve every Electron: nothing is compiled
  makers: [{ name: '@electron-forge/maker-zip', platforms: ['linux', 'win32', 'darwin'] }],
};
