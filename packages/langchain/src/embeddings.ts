// Embeddings of LangChain over `gemma.embed`.
import { Embeddings, type EmbeddingsParams } from '@langchain/core/embeddings';
import type { AdapterOption, EmbedOptions, Gemma } from 'gemma-native';
import { ModelSource, type ModelFields } from './source.js';

export interface GemmaEmbeddingsFields extends EmbeddingsParams, ModelFields {
  /**
   * What documents are embedded for, and queries: EmbeddingGemma was trained with a prompt for each. Default `'document'` and `'query'`, of
   * a model that knows them (`gemma.info.prompts`); null: the texts as they are.
   */
  documentTask?: EmbedOptions['task'] | null;
  queryTask?: EmbedOptions['task'] | null;
  /** As the options of the same names of `gemma.embed`. */
  dimensions?: number;
  normalize?: boolean;
  truncate?: boolean;
  adapter?: AdapterOption;
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
  readonly #tasks: Pick<GemmaEmbeddingsFields, 'documentTask' | 'queryTask'>;
  readonly #options: EmbedOptions;

  constructor(fields: GemmaEmbeddingsFields) {
    super(fields);
    const { documentTask, queryTask, dimensions, normalize, truncate, adapter } = fields;
    this.#source = new ModelSource(fields);
    this.model = this.#source.name;
    this.#tasks = { documentTask, queryTask };
    this.#options = {
      ...(dimensions !== undefined && { dimensions }),
      ...(normalize !== undefined && { normalize }),
      ...(truncate !== undefined && { truncate }),
      ...(adapter !== undefined && { adapter }),
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
      embeddings.push(
        ...(await this.#embed(documents.slice(first, first + TEXTS_AT_ONCE), 'document', this.#tasks.documentTask)),
      );
    }
    return embeddings;
  }

  async embedQuery(document: string): Promise<number[]> {
    const [embedding = []] = await this.#embed([document], 'query', this.#tasks.queryTask);
    return embedding;
  }

  async #embed(texts: string[], usual: string, given: EmbedOptions['task'] | null): Promise<number[][]> {
    const gemma = await this.#source.get();
    const known = Object.hasOwn(gemma.info.prompts, usual) ? usual : undefined;
    const task = given === undefined ? known : given;
    const before = task === null ? { prompt: '' } : task !== undefined && { task };
    const { data, shape } = await gemma.embed(texts, { ...this.#options, ...before });
    const [rows, width] = shape;
    const embeddings: number[][] = [];
    for (let row = 0; row < rows; ++row) {
      if (row % ROWS_AT_ONCE === ROWS_AT_ONCE - 1) await nextTurn();
      embeddings.push(Array.from(data.subarray(row * width, (row + 1) * width)));
    }
    return embeddings;
  }
}
