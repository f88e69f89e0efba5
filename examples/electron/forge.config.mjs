// npx electron-forge package | make
export default {
  packagerConfig: {
    // Files that the operating system opens must be outside the archive: addons, sharp's libraries, models.
    asar: { unpack: '{**/*.node,**/node_modules/@img/**,**/node_modules/gemma-native/models/**}' },
    ignore: [/^\/release/, /^\/test/],
  },
  rebuildConfig: { onlyModules: [] }, // Node-API binaries work in every Electron; nothing is compiled
  makers: [{ name: '@electron-forge/maker-zip', platforms: ['linux', 'win32', 'darwin'] }],
};
