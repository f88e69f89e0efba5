export { scanText, type PersonalData, type PersonalDataKind, type ScanOptions } from './scan.js';
export { scanFile, type FileFinding } from './file.js';
