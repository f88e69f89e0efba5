export declare function heldOutPictures(): Map<string, Buffer>;
