// Embeddings of LangChain over `gemma.embed`.
import { Embeddings, type EmbeddingsParams } from '@langchain/core/embeddings';
import type { EmbeddingTask, EmbedOptions, Gemma } from 'gemma-native';
import { ModelSource, type ModelFields } from './source.js';

export interface GemmaEmbeddingsFields extends EmbeddingsParams, ModelFields {
  /**
   * What documents are embedded for, and queries: EmbeddingGemma was trained with a prompt for each. Default `'document'` and `'query'`;
   * null: the texts as they are. A model that is no embedding model has no tasks.
   */
  documentTask?: EmbeddingTask | null;
  queryTask?: EmbeddingTask | null;
  /** As the options of the same names of `gemma.embed`. */
  dimensions?: number;
  normalize?: boolean;
  truncate?: boolean;
}

// So many texts are asked for at a time, and of so many rows arrays are made before other work has its turn.
const TEXTS_AT_ONCE = 2048;
const ROWS_AT_ONCE = 64;

const nextTurn = () => new Promise<void>((resolve) => setImmediate(resolve));

/**
 * Embeddings by EmbeddingGemma, or by any Gemma 3, in the process. Texts of all calls are computed together, so lists need not be cut.
 *
 * Errors are those of `gemma.embed`.
 */
export class GemmaEmbeddings extends Embeddings {
  /** The model's name, as it was given. */
  readonly model: string;
  readonly #source: ModelSource;
  readonly #tasks: { document: EmbeddingTask | null; query: EmbeddingTask | null };
  readonly #tasksGiven: boolean;
  readonly #options: Omit<EmbedOptions, 'task'>;

  constructor(fields: GemmaEmbeddingsFields) {
    super(fields);
    const { documentTask, queryTask, dimensions, normalize, truncate } = fields;
    this.#source = new ModelSource(fields);
    this.model = this.#source.name;
    this.#tasks = {
      document: documentTask === undefined ? 'document' : documentTask,
      query: queryTask === undefined ? 'query' : queryTask,
    };
    this.#tasksGiven = Boolean(documentTask ?? queryTask);
    this.#options = {
      ...(dimensions !== undefined && { dimensions }),
      ...(normalize !== undefined && { normalize }),
      ...(truncate !== undefined && { truncate }),
    };
  }

  /** The Gemma behind it, loaded if it is not yet. */
  gemma(): Promise<Gemma> {
    return this.#source.get();
  }

  /** Frees the model if it was loaded here. A Gemma that was given stays. */
  dispose(): Promise<void> {
    return this.#source.dispose();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose();
  }

  async embedDocuments(documents: string[]): Promise<number[][]> {
    const embeddings: number[][] = [];
    for (let first = 0; first < documents.length; first += TEXTS_AT_ONCE) {
      embeddings.push(...(await this.#embed(documents.slice(first, first + TEXTS_AT_ONCE), this.#tasks.document)));
    }
    return embeddings;
  }

  async embedQuery(document: string): Promise<number[]> {
    const [embedding = []] = await this.#embed([document], this.#tasks.query);
    return embedding;
  }

  async #embed(texts: string[], task: EmbeddingTask | null): Promise<number[][]> {
    const gemma = await this.#source.get();
    const has = this.#tasksGiven || gemma.info.config.encoder;
    const { data, shape } = await gemma.embed(texts, { ...this.#options, ...(has && task !== null && { task }) });
    const [rows, width] = shape;
    const embeddings: number[][] = [];
    for (let row = 0; row < rows; ++row) {
      if (row % ROWS_AT_ONCE === ROWS_AT_ONCE - 1) await nextTurn();
      embeddings.push(Array.from(data.subarray(row * width, (row + 1) * width)));
    }
    return embeddings;
  }
}
