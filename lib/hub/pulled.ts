// What is said of downloads. Apart from the code that downloads: the package's declarations name these types, and must not name Node's,
// which not every project has.

/** What will be downloaded. */
export interface PullPlan {
  /** `org/name` */
  repo: string;
  revision: string;
  /** that the revision stands for now */
  commit: string;
  /** as the repository's authors state it */
  license?: string;
  /** its licence must be accepted on its page first */
  gated: boolean;
  /** of the repository, for people */
  page: string;
  files: { name: string; bytes: number; cached: boolean }[];
  totalBytes: number;
  /** of totalBytes, what is not here yet */
  downloadBytes: number;
}

/** How far a download is. */
export interface PullProgress {
  /**
   * `'plan'`: first, before anything is downloaded; `'checked'`: the headers have come, and it is a model that can be loaded;
   * `'wait'`: another process downloads the same file; `'download'`; `'done'`
   */
  stage: 'plan' | 'checked' | 'wait' | 'download' | 'done';
  plan: PullPlan;
  /** the file that is being downloaded or waited for */
  file?: string;
  /** that are here, of plan.totalBytes */
  bytes: number;
  /** bytes / plan.totalBytes */
  fraction: number;
  /** of `'checked'`: memory that the model takes with its default context, where the headers tell */
  memoryBytes?: number;
}

/** A model on this machine. */
export interface PulledModel {
  /** of the GGUF file (of a split model the first), or of the folder of a checkpoint: what `Gemma.load` takes */
  path: string;
  /** of its vision encoder, where the repository has one in a file of its own */
  mmproj?: string;
  /** of all its files */
  bytes: number;
  /** that were downloaded now */
  downloadedBytes: number;
  /** inside the repository */
  files: string[];
  repo: string;
  revision: string;
  commit: string;
  license?: string;
  /** false: the hub was not asked, or did not answer, and may have a newer commit */
  upToDate: boolean;
}

export interface PullSettings {
  token?: string | false;
  endpoint?: string;
  offline?: boolean;
  cacheDir?: string;
  mmproj: boolean;
  check: boolean;
  onProgress: (progress: PullProgress) => void;
}
