"""What `test` does after the loss: samples kept in a store, references, scores, and the record of them all."""
