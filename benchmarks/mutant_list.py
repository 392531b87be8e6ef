"""The changes that `mutants.py` tries.

By the changed file and the file of its tests; then by the test that must fail: the old
text, which is there once, the new one and, if no test can fail, why.
"""

MUTANTS = {
    ("agnews_helpers/recipe.py", "tests/test_recipe.py"): {
        "test_the_defaults_are_the_recipe": [
            ("batch_size: int = 8", "batch_size: int = 16"),
            ("learning_rate: float = 2e-5", "learning_rate: float = 5e-5"),
        ],
        "test_a_value_out_of_range_is_named": [
            ("3 <= n <= 8192", "2 <= n <= 8192"),
            ("0 <= n < 2**32", "0 <= n <= 2**32"),
            ("right_type &= isinstance(value, bool) == (kind is bool)", "pass"),
        ],
        "test_why_the_profile_was_chosen_is_told_and_is_no_part_of_the_recipe": [
            (".with_reason(self.reason)", ""),
        ],
        "test_a_recipe_comes_back_from_its_dict": [
            ("cls.__annotations__.keys() & values.keys()", "values.keys()"),
        ],
        "test_folders_are_absolute_if_asked_for": [
            ("if absolute_paths and folder", "if folder"),
            ("Path(values[name]).expanduser()", "Path(values[name])"),
        ],
        "test_mini_and_sample_are_no_folders": [
            (" and not is_word", ""),
        ],
    },
    ("agnews_helpers/profiles.py", "tests/test_recipe.py"): {
        "test_the_profile_laptop_uses_all_of_ones_own_rows": [
            ('fields.get("data", HUB_DATA) != HUB_DATA', "False"),
        ],
        "test_the_environment_and_arguments_override": [
            (
                "environment_overrides() | overrides",
                "overrides | environment_overrides()",
            ),
        ],
        "test_a_bad_variable_is_named": [
            ("text.isdecimal()", "True"),
        ],
        "test_the_profile_follows_from_the_machine": [
            ("if torch.cuda.is_available()", "if not torch.cuda.is_available()"),
            ('"train_rows": 800', '"train_rows": 8000'),
        ],
        "test_full_with_local_folders_needs_no_hub": [
            (
                "if asked and {HUB_MODEL, HUB_DATA} &",
                "if asked or {HUB_MODEL, HUB_DATA} &",
            ),
        ],
    },
    ("agnews_helpers/data.py", "tests/test_data.py"): {
        "test_four_own_classes_with_numbers_are_not_taken_for_ag_news": [
            ("and train.table.columns[0] in train.columns", ""),
        ],
        "test_a_list_of_classes_that_no_label_matches_is_refused": [
            (" or not any(scores):", ":"),
        ],
        "test_with_many_classes_each_has_a_row_to_validate_with": [
            ("max(4, len(names), round", "max(4, round"),
        ],
        "test_a_folder_becomes_three_splits": [
            ("max(4, len(names), round", "max(5, len(names), round"),
        ],
        "test_of_each_class_two_rows_remain_for_training": [
            ("place < size - 2", "place < size - 1"),
            (" | (place == 0)", ""),
            ('hashes < "1a"', 'hashes < "2a"'),
            ("return frame[~is_held_out]", "return frame"),
        ],
        "test_a_class_of_one_row_is_drawn_from_without_an_error": [
            ("except ValueError:", "except KeyError:"),
        ],
        "test_every_line_of_a_small_class_is_named": [
            ("MIN_ROWS_PER_CLASS = 4", "MIN_ROWS_PER_CLASS = 3"),
        ],
        "test_one_row_of_a_class_cannot_be_split": [
            ("if counts[i] < 2]", "if counts[i] < 1]"),
        ],
        "test_fewer_rows_than_a_batch": [
            ("len(train) < recipe.batch_size", "len(train) <= recipe.batch_size"),
            ("max(1, len(rows) - n)", "len(rows) - n"),
        ],
        "test_the_number_of_rows_is_a_maximum": [
            ("if n is None or n >= len(frame)", "if n is None"),
        ],
        "test_a_subset_keeps_the_classes_and_the_seed": [
            ('"random_state": seed', '"random_state": 0'),
            ('stratify=frame["label"]', "stratify=None"),
        ],
        "test_rows_in_both_splits_are_counted": [
            (
                '{*splits[one]["plain_text"]} & {*',
                '{*splits[one]["plain_text"]} - {*',
            ),
        ],
        "test_three_codings": [
            ("range(1, len(names) + 1)", "range(1, len(names))"),
            ("scores.index(max(scores))", "scores.index(min(scores))"),
        ],
        "test_a_test_file_without_labels_is_left_out_with_a_note": [
            ("*train.columns, labelled=False)", "*train.columns)"),
        ],
        "test_a_test_file_needs_no_training_rows": [
            ('found.get("test") or found["train"]', 'found["train"]'),
            ("names = names or _listed", "names = _listed"),
        ],
        "test_a_test_file_without_labels_is_left_out_with_a_note[header0]": [
            ('<= {"", "-1"}', '<= {"-1"}'),
        ],
        "test_what_leaves_too_few_labels_is_listed": [
            ("[*train.describe_problems(), needed]", "[needed]"),
        ],
        "test_a_file_for_validation_is_used": [
            ("validation|valid|val|dev|eval", "validation|valid|val|dev"),
        ],
        "test_labels_that_are_written_in_two_ways_are_told": [
            ("if len(s) > 1", "if len(s) > 2"),
        ],
        "test_a_row_without_one_label": [
            (r"|\d+(,\d+)+", ""),
        ],
        "test_a_list_of_classes_that_names_too_few": [
            (
                "}) < max(2, len(names))",
                "}) < len(names)",
            ),
        ],
        "test_numbers_are_in_their_order_and_words_in_the_alphabets": [
            ("name.zfill(9) if name.isdecimal() else", ""),
        ],
        "test_a_subset_is_in_the_order_of_the_file": [
            ("part.sort_index() for part", "part for part"),
        ],
        "test_labels_that_fit_two_codings_are_not_guessed": [
            ("if scores[1] == scores[2] > scores[0]", "if scores[1] == scores[2]"),
        ],
    },
    ("agnews_helpers/model.py", "tests/test_model.py"): {
        "test_the_best_of_another_run_is_named": [
            ("folder.name == storage.BEST and facts", "False and facts"),
        ],
        "test_the_same_seed_gives_the_same_head_and_leaves_the_generator_alone": [
            ("manual_seed(recipe.seed)", "manual_seed(0)"),
            ("fork_rng(devices=[])", "fork_rng(devices=[], enabled=False)"),
        ],
        "test_a_folder_is_loaded_in_fp32_whatever_was_stored": [
            ("dtype=torch.float32", 'dtype="auto"'),
        ],
        "test_parts_that_do_not_belong_together": [
            (
                "/ config.vocab_size <= 1",
                "/ config.vocab_size < 1",
            ),
            ("positions < max_length", "positions <= max_length"),
            ("min(positions, tokenizer.model_max_length)", "positions"),
            (
                "pads = tokenizer.pad_token_id, config.pad_token_id",
                "pads = [tokenizer.pad_token_id]",
            ),
            (" or not tokenizer.is_fast", ""),
            ("not 0.5 < len", "not 0 < len"),
            ("2 * (positions % 8 == 2)", "0"),
            (', "xlnet")', ")"),
        ],
        "test_classes_are_found_by_name": [
            ("[known.index(name) for name in wanted]", "list(range(len(wanted)))"),
        ],
        "test_a_classifier_is_loaded_from": [
            ("if new_weights:", "if not new_weights:"),
        ],
        "test_classes_that_no_model_can_have_are_refused": [
            (
                "len({*map(plain_label, names)}) < max(2, len(names))",
                "len({*map(plain_label, names)}) < len(names)",
            ),
        ],
        "test_a_subfolder_called_best_is_not_the_classifier_of_a_saved_model": [
            ("best.is_dir() and (is_run or not", "best.is_dir() or (is_run or not"),
        ],
    },
    ("agnews_helpers/model.py", "tests/test_runs.py"): {
        "test_a_model_whose_file_has_other_names_is_kept_under_its_own": [
            (", save_original_format=False", ""),
        ],
        "test_an_output_folder_may_be_called_best": [
            (
                "folder.name == storage.BEST and not record.is_file()",
                "folder.name == storage.BEST",
            ),
        ],
        "test_another_model_in_a_folder_of_the_same_name_is_named": [
            ('path.suffix in (".safetensors", ".bin") or', ""),
        ],
        "test_other_frozen_parameters_are_named": [
            ("not any(w.requires_grad", "not all(w.requires_grad"),
        ],
    },
    ("agnews_helpers/model.py", "tests/test_misuse.py"): {
        "test_is_refused_before_any_work[one word as names]": [
            ("if not are_names or", "if"),
        ],
        "test_is_refused_before_any_work[bf16]": [
            ("& {torch.float16, torch.bfloat16}", "& {torch.float16}"),
        ],
    },
    ("agnews_helpers/batching.py", "tests/test_batching.py"): {
        "test_the_order_is_a_function_of_seed_and_epoch": [
            ("recipe.seed * 1_000_003 + epoch", "recipe.seed * 1_000_003"),
            ("recipe.seed * 1_000_003 + epoch", "epoch"),
        ],
        "test_grouping_computes_hardly_more_than_the_real_tokens": [
            ("window[by_length].split", "window.split"),
        ],
        "test_grouping_stays_within_its_windows_and_shuffles_between_them": [
            (
                "split(MEGABATCH * recipe.batch_size)",
                "split(2 * MEGABATCH * recipe.batch_size)",
            ),
            (
                "torch.randperm(len(grouped), generator=generator)",
                "torch.arange(len(grouped))",
            ),
        ],
        "test_evaluation_goes_from_long_to_short": [
            ("key=lambda index: -lengths[index]", "key=lambda index: lengths[index]"),
            ("max(1, max_tokens //", "max(2, max_tokens //"),
        ],
        "test_many_rows_are_tokenized_like_few": [
            ("texts[start : start + 1000]", "texts[start : start + 999]"),
        ],
        "test_a_special_token_that_somebody_typed_is_plain_text": [
            ("split_special_tokens=True", "split_special_tokens=False"),
        ],
        "test_a_tokenizer_that_does_not_know_the_texts_is_refused": [
            ("2 * unknown > sum", "unknown > sum"),
        ],
        "test_tokenize_cuts_and_counts": [
            ("max_length=recipe.max_length", "max_length=512"),
        ],
        "test_a_batch_worked_by_hand": [
            ("[1] * len(row) + [0]", "[1] * len(row) + [1]"),
            ("self.pad_to or max(", "max("),
            ("[self.pad_token_id] * (length", "[0] * (length"),
        ],
        "test_a_loader_pads_with_the_models_token": [
            ("Collator(pad_token_id, recipe.pad_to)", "Collator(0, recipe.pad_to)"),
        ],
        "test_loaders_for_training_and_evaluation": [
            ("Collator(pad_token_id, recipe.pad_to)", "Collator(pad_token_id)"),
        ],
        "test_a_loader_leaves_the_global_generator_alone": [
            ("generator=torch.Generator(),", "generator=None,"),
        ],
        "test_what_holds_for_any_lengths": [
            ("batches.insert(1,", "batches.insert(0,"),
            ("longest.index(max(longest))", "longest.index(min(longest))"),
        ],
    },
    ("agnews_helpers/batching.py", "tests/test_training.py"): {
        "test_a_row_that_alone_was_cut_elsewhere_is_found": [
            (", lengths.index(max(lengths))]", "]"),
        ],
    },
    ("agnews_helpers/batching.py", "tests/test_evaluation.py"): {
        "test_a_few_texts_may_have_signs_that_the_tokenizer_does_not_know": [
            ("if sample[4:] and 2", "if 2"),
            ("if sample[4:] and 2", "if sample[5:] and 2"),
        ],
        "test_texts_are_numbered_from_1_the_later_ones_too": [
            ("in enumerate(texts, 1)", "in enumerate(texts)"),
            ("in enumerate(texts, 1)", "in enumerate(texts[:1000], 1)"),
        ],
        "test_a_label_that_is_no_class_is_refused": [
            (
                "if label not in range(classes)",
                "if label not in range(classes + 1)",
            ),
        ],
    },
    ("agnews_helpers/batching.py", "tests/test_misuse.py"): {
        "test_is_refused_before_any_work[fractions]": [
            ('labels.dtype.kind not in "iu"', 'labels.dtype.kind not in "iuf"'),
        ],
    },
    ("agnews_helpers/training.py", "tests/test_not_ours.py"): {
        "test_a_failure_leaves_the_model_as_it_was": [
            ("module.__dict__ = before", "pass"),
        ],
    },
    ("agnews_helpers/training.py", "tests/test_training.py"): {
        "test_it_equals_the_plain_loop_bit_for_bit": [
            ("optimizer.zero_grad()", "pass"),
            ("model.train()  #", "pass  #"),
            ("torch.manual_seed(recipe.seed)", "pass"),
        ],
        "test_any_gradient_that_is_not_finite_stops_before_the_step": [
            ("loss = check_finite(loss, model)", "loss = loss.item()"),
            ("isfinite(value + norm)", "isfinite(value)"),
        ],
        "test_the_loss_is_the_mean_cross_entropy": [
            ("losses / (rows or len(logits))", "losses / len(logits)"),
            ('reduction="sum"', 'reduction="mean"'),
            ("return loss.detach()", "return loss"),
        ],
        "test_gradients_left_in_the_model_are_cleared": [
            ("# for dropout\n        model.zero_grad()", "# for dropout"),
        ],
        "test_what_is_not_finite_is_named_and_cleared": [
            ("model.zero_grad()\n        raise NonFiniteError", "raise NonFiniteError"),
            ('"gradient" if isfinite(value) else', '"gradient" if value else'),
        ],
        "test_wherever_memory_runs_out_it_says_what_helps_and_the_run_goes_on": [
            ("adam.state.clear()", "pass"),
            ("model.zero_grad()\n            free_memory", "free_memory"),
            ("with run.saved_if_memory_runs_out(state)", "if True"),
            ("{str(error).splitlines()[0]} What", "{error} What"),
        ],
        "test_in_bf16_a_loss_has_the_digits_of_fp32": [
            (".logits.float()", ".logits"),
            ('if recipe.precision == "bf16"', "if False"),
        ],
        "test_a_step_is_checked_by_few_calls_which_do_not_grow_with_the_model": [
            (
                "get_total_norm(p.grad for p in model.parameters() if p.grad is not "
                "None)",
                "sum(p.grad.norm() for p in model.parameters())",
            ),
        ],
        "test_a_class_without_rows_has_a_finite_weight": [
            (".clamp(min=1)", ""),
            ("minlength=model.config.num_labels", "minlength=0"),
            ("len(split) / (len(counts) * counts)", "len(split) / counts"),
        ],
        "test_gradient_checkpointing_computes_each_layer_twice": [
            ("enable_gradient_checkpointing(model)\n", "pass\n"),
        ],
        "test_classes_in_another_order_are_refused": [
            (
                'label_mapping(model, tokens["train"]) != [',
                'label_mapping(model, tokens["train"]) == [',
            ),
        ],
    },
    ("agnews_helpers/training.py", "tests/test_runs.py"): {
        "test_a_stop_before_the_first_step_of_a_session_is_no_error[0]": [
            ("if stop.received or len(", "if len("),
        ],
        "test_a_pipe_that_ends_with_the_same_signal_costs_nothing": [
            ("if stop.received:  # before", "if False:  # before"),
        ],
        "test_the_recipe_of_a_run_is_known_before_and_after_its_end": [
            ("len(state.step_seconds) == steps", "len(state.losses) == steps"),
        ],
        "test_a_stopped_run_ends_bit_for_bit_like_the_whole_one": [
            ("batches = batches[state.batch :]", "pass"),
        ],
        "test_a_checkpoint_after_every_step_changes_nothing_and_two_are_kept": [
            ("if run.is_save_due:", "if not run.is_save_due:"),
        ],
    },
    ("agnews_helpers/training.py", "tests/test_hardware.py"): {
        "test_bf16_on_a_card_that_emulates_it_is_refused_before_training": [
            ("check_precision(recipe.precision, this_card())", "pass"),
        ],
    },
    ("agnews_helpers/training.py", "tests/test_misuse.py"): {
        "test_is_refused_before_any_work[0 steps]": [
            ("steps < 1", "steps < 0"),
        ],
        "test_is_refused_before_any_work[no validation]": [
            ('for name in ("train", "validation"):', 'for name in ("train",):'),
        ],
        "test_is_refused_before_any_work[labels of -1]": [
            ('check_labels(tokens[name]["label"][:], model.config.num_labels)', "pass"),
        ],
    },
    ("agnews_helpers/checkpoints.py", "tests/test_runs.py"): {
        "test_many_saves_at_one_step_keep_their_order": [
            ('int(*number or "1")', "0"),
            ("_order(taken[-1])[1] + 1", "len(taken) + 1"),
            ("NAME.fullmatch(p.name)), key=_order", "NAME.fullmatch(p.name)), key=str"),
        ],
    },
    ("agnews_helpers/cli.py", "tests/test_cli.py"): {
        "test_each_row_stays_one_row[\\r]": [
            ('lineterminator="\\r\\n"', 'lineterminator="\\n"'),
        ],
        "test_arguments_are_looked_at_before_torch_is_imported": [
            ("if is_allowed(number)", "if True"),
        ],
        "test_every_row_of_a_file_is_in_the_labelled_one": [
            ("table.loc[has_text, name]", "table.loc[:, name]"),
            ("describe_problems(but=NO_TEXT)", "describe_problems()"),
        ],
        "test_answers_that_are_not_sure_enough_are_marked": [
            ('< options.min_confidence, "label"] = UNSURE', '< 0, "label"] = UNSURE'),
        ],
        "test_what_cannot_be_predicted_is_one_line": [
            ('options.texts in ([], ["-"])', "not options.texts"),
            ("any(files) or is_file", "is_file"),
        ],
        "test_columns_of_those_names_are_kept": [
            ("while name in table.columns:", "while False:"),
        ],
        "test_the_column_that_was_found_in_training_is_found_again": [
            (", known=known)", ")"),
        ],
        "test_all_rows_of_another_file_are_scored": [
            ("place.exists() and", "False and"),
            ('mark="\\ufeff"', 'mark=""'),
        ],
        "test_what_check_would_write_to_must_be_new": [
            ("options.mistakes, options.write", "options.mistakes"),
        ],
        "test_a_file_of_texts_is_labelled": [
            ('read.separator or ","', '","'),
            ('"" if read.encoding == "utf-8" else', '"" if True else'),
        ],
        "test_mistakes_are_written_the_worst_first": [
            ("options.mistakes, report.worst)", "options.mistakes, report.answers)"),
            ("options.output, options.mistakes,", "options.output,"),
        ],
    },
    ("agnews_helpers/model_card.py", "tests/test_model_card.py"): {
        "test_a_card_says_what_the_classifier_is": [
            ("**values,", "**values | {'epochs': epoch},"),
            ("public or Path(recipe.model).name", "Path(recipe.model).name"),
        ],
        "test_a_card_names_no_folder_of_the_machine": [
            ('base_model=None if public == "mini" else public', "base_model=named"),
            ("else Path(recipe.data).name", "else recipe.data"),
            ("public or Path(recipe.model).name", "recipe.model"),
        ],
    },
    ("agnews_helpers/runs.py", "tests/test_model_card.py"): {
        "test_who_passes_a_classifier_on_may_add_to_its_card": [
            ("if name != storage.CARD", "if True"),
        ],
        "test_a_run_writes_the_card_of_its_best_epoch": [
            (
                'for split in ("train", "validation")\n        }',
                'for split in ("train", "train")\n        }',
            ),
        ],
    },
    ("agnews_helpers/model.py", "tests/test_model_card.py"): {
        "test_who_passes_a_classifier_on_may_add_to_its_card": [
            ("if name != storage.CARD", "if True"),
        ],
    },
    ("agnews_helpers/runs.py", "tests/test_runs.py"): {
        "test_a_run_that_began_in_parts_is_resumed_without": [
            (
                "recipe.micro_batch_size or recipe.batch_size",
                "recipe.micro_batch_size or 1",
            ),
            ("state.split_sizes[:1] = [[", "state.split_sizes[0:0] = [["),
        ],
        "test_a_folder_that_is_away_for_a_moment_costs_one_save": [
            (
                "        try:\n            self._check_folder()\n",
                "        self._check_folder()\n        try:\n",
            ),
        ],
        "test_checkpoints_that_cannot_be_read_are_not_begun_anew": [
            (
                "self.resume is True or find_checkpoints(self.path)",
                "self.resume is True",
            ),
        ],
        "test_an_unfinished_run_without_its_checkpoints_says_that_it_begins_anew": [
            (
                "if self._record:\n            print",
                "if False:\n            print",
            ),
        ],
        "test_a_checkpoint_after_every_step_changes_nothing_and_two_are_kept": [
            ("CHECKPOINTS_KEPT = 2", "CHECKPOINTS_KEPT = 3"),
        ],
        "test_differences_are_said_in_words": [
            ("theirs.get(name) != value", "theirs.get(name) == value"),
        ],
        "test_another_recipe_is_named": [
            ('"learning_rate",\n', "\n"),
        ],
        "test_what_decides_the_course_of_a_run_is_its_identity": [
            ('"group_by_length",\n', "\n"),
            ('"seed",\n', "\n"),
        ],
        "test_a_checkpoint_is_due_after_so_many_minutes": [
            ("60 * self.save_minutes", "self.save_minutes"),
        ],
        "test_only_its_own_checkpoints_are_deleted_by_a_run": [
            ('            if run_id in (None, read_progress(path).get("run"))\n', ""),
        ],
        "test_foreign_files_under_our_names_are_refused_and_stay": [
            (', "test_report.json", ', ", "),
        ],
        "test_a_finished_classifier_is_replaced_only_by_a_finished_one": [
            ('if self._record.get("finished") and run is None', "if False"),
        ],
        "test_a_classifier_of_an_unfinished_run_that_was_changed_is_set_aside": [
            ("return damaged_classifier(self.path / name, self._record)", "return []"),
        ],
        "test_steps_of_all_sessions_count_as_time_and_saving_does_not": [
            ("state.lap()  #", "pass  #"),
        ],
        "test_a_copy_of_the_classifier_cuts_texts_where_the_run_did": [
            ("self.tokenizer.model_max_length = recipe.max_length", "pass"),
        ],
        "test_an_argument_out_of_range_is_named": [
            ("if not save_minutes > 0", "if not save_minutes >= 0"),
        ],
        "test_resume_true_needs_a_run": [
            ("if self.resume is True", "if self.resume is False"),
        ],
        "test_other_frozen_parameters_are_named": [
            ("if not w.requires_grad]", "]"),
        ],
        "test_a_finished_run_is_returned": [
            (".rename(index=int)", ""),
        ],
        "test_a_run_stopped_before_the_first_validation_has_a_classifier": [
            ("if not state.best_epoch:  #", "if state.best_epoch:  #"),
        ],
    },
    ("agnews_helpers/runs.py", "tests/test_checkpoints.py"): {
        "test_each_checkpoint_is_whole_by_itself": [
            ("CHECKPOINTS_KEPT = 2", "CHECKPOINTS_KEPT = 1"),
        ],
    },
    ("agnews_helpers/runs.py", "tests/test_training.py"): {
        "test_the_best_epoch_is_kept_not_the_last": [
            (
                "if state.best_epoch and not state.is_best_epoch:",
                "if state.best_epoch and state.is_best_epoch:",
            ),
        ],
        "test_the_size_of_parts_may_change_when_a_run_is_resumed": [
            (
                "state.split_sizes[:1] = [[1, ",
                "_ = [[1, ",
            ),
        ],
    },
    ("agnews_helpers/runs.py", "tests/test_not_ours.py"): {
        "test_a_folder_that_is_renamed_while_it_trains": [
            ("if os.path.samestat(", "if not os.path.samestat("),
        ],
    },
    ("agnews_helpers/checkpoints.py", "tests/test_checkpoints.py"): {
        "test_the_state_says_where_the_run_is_and_how_long_it_takes": [
            (
                "-(-self.rows // self.batch_size) * self.epochs",
                "self.rows // self.batch_size * self.epochs",
            ),
            ("self.step_seconds[1:] or self.step_seconds", "self.step_seconds"),
            ("min(self.epoch, self.epochs)", "self.epoch"),
        ],
        "test_the_best_epoch_has_the_highest_accuracy_then_the_lowest_loss": [
            ('-row["validation_loss"]', 'row["validation_loss"]'),
            ("if self.is_best_epoch:", "if True:"),
            ("best = max(", "best = min("),
            ("self.epoch - 1 and not self.batch", "self.epoch - 1"),
        ],
        "test_the_time_of_an_epoch": [
            ("self.rows / self.epoch_seconds", "self.rows / self.step_seconds[-1]"),
            ("self.epoch_seconds = 0.0", "pass"),
            ("self.lap()  # validation", "pass  # validation"),
        ],
        "test_a_moment_is_read_back_to_the_last_bit": [
            ("module.set_rng_state(random_state)", "pass"),
            ('optimizer.load_state_dict(training["optimizer"])', "pass"),
        ],
        "test_each_checkpoint_is_whole_by_itself": [
            ("_in_order(found)[::-1]", "_in_order(found)"),
        ],
        "test_code_in_a_checkpoint_does_not_run": [
            ("weights_only=True", "weights_only=False"),
        ],
        "test_a_checkpoint_takes_the_room_that_is_asked_for": [
            ("if state.best_epoch:", "if not state.best_epoch:"),
        ],
    },
    ("agnews_helpers/checkpoints.py", "tests/test_training.py"): {
        "test_history_and_steps": [
            ("self.losses[-self.batch :]", "self.losses"),
        ],
    },
    ("agnews_helpers/evaluation.py", "tests/test_evaluation.py"): {
        "test_evaluate_leaves_dropout_as_it_was": [
            ("model.eval()", "pass"),
            ("model.train(was_training)", "pass"),
        ],
        "test_a_batch_has_so_many_tokens_at_most": [
            ("[recipe.pad_to or length for", "[length for"),
        ],
        "test_figures_worked_by_hand": [
            ("-log_p[np.arange", "log_p[np.arange"),
            ("log_softmax(logits, axis=1)", "log_softmax(logits, axis=0)"),
            ('average="macro"', 'average="micro"'),
        ],
        "test_the_true_classes_are_the_rows_of_the_confusion_matrix": [
            (
                "confusion_matrix(true, predicted,",
                "confusion_matrix(predicted, true,",
            ),
        ],
        "test_classes_in_another_order_than_the_datas_are_found_by_name": [
            ("mapping[labels]", "labels"),
        ],
        "test_another_models_texts_are_truncated_to_its_positions": [
            ("min(512, self.tokenizer", "max(512, self.tokenizer"),
        ],
        "test_damaged_weights_are_told_of": [
            ("logits.isfinite().all()", "logits.isfinite().any()"),
        ],
        "test_answers_has_one_row_per_text": [
            ("np.exp(log_p.max(axis=1))", "np.exp(log_p.min(axis=1))"),
        ],
        "test_wilsons_interval": [
            ('method="wilson"', 'method="exact"'),
        ],
        "test_the_surest_mistake_comes_first": [
            ("ascending=False", "ascending=True"),
        ],
        "test_classify": [
            ("probabilities.argmax(axis=1)", "probabilities.argmin(axis=1)"),
        ],
        "test_a_logit_that_is_no_number_is_refused": [
            ("np.isnan(log_p).any()", "np.isnan(log_p).all()"),
        ],
    },
    ("agnews_helpers/evaluation.py", "tests/test_model.py"): {
        "test_a_classifier_is_loaded_from": [
            ('run_facts(folder).get("recipe", longest)', "longest"),
        ],
    },
    ("agnews_helpers/running.py", "tests/test_running.py"): {
        "test_a_page_shows_pictures_and_hides_answers": [
            ('source / "pictures", target / "pictures"', 'source / "pictures", target'),
            ('"name": path.stem', '"name": path.name'),
        ],
    },
    ("agnews_helpers/evaluation.py", "tests/test_runs.py"): {
        "test_a_model_made_by_hand_is_known_by_its_shapes": [
            ("if name and Path(name)", "if Path(name)"),
        ],
    },
    ("agnews_helpers/plumbing/errors.py", "tests/test_misuse.py"): {
        "test_a_union_may_have_an_origin": [
            ("isinstance(kind, GenericAlias)", 'hasattr(kind, "__origin__")'),
        ],
    },
    ("agnews_helpers/evaluation.py", "tests/test_misuse.py"): {
        "test_is_refused_before_any_work[evaluate at another length]": [
            (
                "check_tokenizer(split, load_tokenizer(Recipe(model=name)), recipe)",
                "pass",
            ),
        ],
    },
    ("agnews_helpers/budgeting.py", "tests/test_budgeting.py"): {
        "test_an_epoch_is_the_sum_of_its_batches": [
            ("recipe.epochs * rows / len(lengths)", "recipe.epochs * rows"),
            ("recipe.pad_to or max(", "max("),
        ],
        "test_hours_on_a_card": [
            ("times = recipe.epochs * rows", "times = rows"),
        ],
        "test_lengths_are_those_of_ag_news": [
            ("min(length, recipe.max_length)", "length"),
        ],
        "test_the_options_are_the_recipes": [
            ("recipe.micro_batch_size is None", "recipe.micro_batch_size is not None"),
            ("checkpointing=recipe.gradient_checkpointing", "checkpointing=False"),
        ],
        "test_a_micro_batch_size_takes_the_batch_in_parts": [
            ("[[1, micro_batch_size]]", "[[65, micro_batch_size]]"),
        ],
        "test_the_traced_step_is_the_loops": [
            ("optimizer.zero_grad()", "pass"),
        ],
    },
    ("agnews_helpers/plumbing/memory.py", "tests/test_memory.py"): {
        "test_memory_that_runs_out_between_two_parts_leaves_no_gradients": [
            ("model.zero_grad()", "pass"),
        ],
        "test_the_smaller_size_is_kept_for_longer_batches_only": [
            ("tokens <= length", "tokens >= length"),
            (
                "split_sizes.append([length, size // 2])",
                "split_sizes.append([1, size // 2])",
            ),
            (
                "split_sizes.append([length, size // 2])",
                "split_sizes.append([length, size - 1])",
            ),
        ],
        "test_a_row_that_does_not_fit_is_an_error_without_gradients": [
            ("if size == 1:", "if size <= 2:"),
        ],
        "test_the_parts_add_up_to_the_whole_batch": [
            ("range(0, n, size)", "range(0, n - 1, size)"),
            ("total + loss", "loss"),
            ("rows=n", "rows=len(part)"),
        ],
        "test_another_error_is_not_caught": [
            ("if not is_out_of_memory(error)", "if is_out_of_memory(error)"),
        ],
    },
    ("agnews_helpers/plumbing/interrupts.py", "tests/test_interrupts.py"): {
        "test_a_second_signal_soon_after_is_the_same_request_and_a_later_one_ends_it": [
            ("self._received_at >=", "self._received_at <="),
            ("if not self.received:", "if True:"),
        ],
        "test_an_ignored_signal_stays_ignored": [
            ("is not signal.SIG_IGN", "is not None"),
        ],
        "test_a_signal_is_only_noted_and_the_handler_is_put_back": [
            ("handler or signal.SIG_DFL", "signal.SIG_DFL"),
        ],
        "test_a_function_ends_before_the_next_batch_wherever_the_signal_came": [
            ("if self.received:", "if not self.received:"),
            ("hook.remove()", "pass"),
        ],
        "test_another_thread_changes_no_handlers": [
            ("threading.current_thread() is threading.main_thread()", "True"),
        ],
    },
    ("agnews_helpers/plumbing/interrupts.py", "tests/test_runs.py"): {
        "test_pressing_stop_twice_is_one_request": [
            ("GRACE_SECONDS = 3.0", "GRACE_SECONDS = 0.0"),
            (
                "= signal.signal(number, self._handle)",
                "= signal.getsignal(number)",
            ),
            ("self.received = True", "pass"),
        ],
    },
    ("agnews_helpers/plumbing/storage.py", "tests/test_storage.py"): {
        "test_files_of_an_editor_do_not_damage_a_folder": [
            (r"(?!.*(^|/)\.*(/|$))[^\\:\0-\x1f\ud800-\udfff]+", r"[\w-][\w.-]*"),
        ],
        "test_a_folder_is_removed_also_if_it_lacks_a_file": [
            (".as_posix() not in ours", ".as_posix() in ours"),
        ],
        "test_a_link_in_the_place_of_a_folder_is_set_aside": [
            ("path.is_symlink()\n        or (", "False\n        or ("),
        ],
        "test_a_manifest_with_a_name_that_leads_elsewhere_is_damaged": [
            ("if not all(map(PLAIN_NAME.fullmatch, sums))", "if False"),
        ],
        "test_the_lock_of_another_run_stays": [
            ("if os.path.samestat(path.stat(), ours)", "if True"),
        ],
        "test_foreign_files_whose_names_begin_like_ours_stay": [
            ("if STAGING_NAME.fullmatch(path.name)", "if True"),
        ],
        "test_nothing_is_written_through_a_link_or_over_one": [
            ("while os.path.lexists(candidate)", "while candidate.exists()"),
        ],
        "test_a_record_of_another_format_is_that_of_another_version": [
            ('if facts.get("format") != FORMAT:', "if False:"),
        ],
        "test_a_folder_is_written_whole_or_not_at_all": [
            ("sha256(folder / name) != wanted", "not wanted"),
            (
                "(moved.rename, folder)\n            _discard(partial)",
                "(moved.rename, folder)",
            ),
        ],
        "test_no_bit_of_a_record_can_be_flipped_unseen": [
            (
                'facts.pop("checksum", None) != _checksum(facts)',
                'facts.pop("checksum", None) is None',
            ),
        ],
        "test_a_record_is_read_as_it_was_written": [
            (
                "sort_keys=True",
                "sort_keys=False",
                "JSON keeps the order of an object's names, also when it is read",
            ),
        ],
        "test_a_file_system_that_cannot_flush_is_used": [
            ("if error.errno in NO_ROOM", "if error.errno not in NO_ROOM"),
        ],
        "test_a_file_that_a_virus_scanner_holds_is_tried_again": [
            ("for number in range(WAITS):", "for number in ():"),
            ("0.35 * 2**number", "0.35"),
        ],
        "test_the_lock_is_inside_the_folder_and_is_removed_with_it": [
            ("ours):\n                path.unlink()", "ours):\n                pass"),
        ],
        "test_a_folder_of_ours_is_replaced_without_a_trace": [
            ("    _discard(moved)\n    return folder", "    return folder"),
        ],
    },
    ("agnews_helpers/plumbing/storage.py", "tests/test_held_files.py"): {
        "test_at_any_operation_a_file_is_waited_for": [
            ("retry_if_held(write, partial)", "write(partial)"),
            ("retry_if_held(partial.mkdir, 0o777, True)", "partial.mkdir(0o777, True)"),
            ("retry_if_held(shutil.copymode, partial", "shutil.copymode(partial"),
            ("retry_if_held(partial.rename, folder)", "partial.rename(folder)"),
            ("retry_if_held(folder.rename, moved)", "folder.rename(moved)"),
            ("retry_if_held(partial.write_bytes, text", "partial.write_bytes(text"),
            ("retry_if_held(os.replace, partial, path)", "os.replace(partial, path)"),
            ("range(WAITS)", "range(WAITS - 3)"),
        ],
        "test_what_is_held_for_good_is_named_and_the_old_one_stays": [
            ("retry_if_held(moved.rename, folder)", "pass"),
            ("0.35 * 2**number", "1e5"),
        ],
    },
    ("agnews_helpers/runs.py", "tests/test_held_files.py"): {
        "test_nothing_is_replaced_while_a_file_is_open_elsewhere": [
            ("storage.move(path, path)", "pass"),
            ("in (storage.RUN_FILE, *texts)", "in texts"),
        ],
        "test_what_cannot_be_read_is_not_taken_for_changed": [
            (
                "with _explained(path):\n            if not (self._damaged",
                "with suppress(OSError):\n            if not (self._damaged",
            ),
        ],
        "test_a_periodic_save_that_fails_is_a_note_and_is_tried_again": [
            ("if not is_periodic:", "if True:"),
        ],
        "test_a_save_that_somebody_waits_for_is_no_note": [
            ("if not is_periodic:", "if False:"),
        ],
        "test_the_ends_of_lines_make_no_other_model": [
            ('path.suffix == ".json"', "False"),
        ],
        "test_paths_are_printed_with_slashes": [
            ("saved in {self.path.as_posix()}", "saved in {self.path}"),
        ],
    },
    ("agnews_helpers/plumbing/interrupts.py", "tests/test_held_files.py"): {
        "test_ctrl_break_asks_a_run_to_stop_where_there_is_one": [
            (', "SIGBREAK"', ""),
        ],
    },
    ("agnews_helpers/doctor.py", "tests/test_doctor.py"): {
        "test_what_is_said_of_a_whole_machine": [
            ('"OneDrive" in str(Path.cwd())', "False"),
        ],
        "test_no_card_that_can_be_used": [
            ("isinstance(error, AssertionError)", "True"),
        ],
        "test_the_commands_that_repair_a_cpu_build_are_of_the_tested_version": [
            ("pip uninstall -y torch", "pip uninstall torch"),
        ],
    },
    ("agnews_helpers/plumbing/storage.py", "tests/test_checkpoints.py"): {
        "test_a_full_disk_ends_the_run_and_leaves_the_older_checkpoint": [
            ("os.fsync(handle)", "pass"),
        ],
    },
    ("agnews_helpers/plumbing/storage.py", "tests/test_runs.py"): {
        "test_a_classifier_of_an_unfinished_run_that_was_changed_is_set_aside": [
            ("number += 1", "number += 2"),
        ],
    },
    ("agnews_helpers/plumbing/storage.py", "tests/test_not_ours.py"): {
        "test_all_files_can_be_read_by_whoever_may_read_a_new_file": [
            ("retry_if_held(shutil.copymode, partial / MANIFEST, path)", "pass"),
        ],
    },
    ("agnews_helpers/plumbing/tables.py", "tests/test_tables.py"): {
        "test_a_number_on_a_line_of_its_own_is_no_row": [
            ("2 * whole > len(parts) and ", ""),
        ],
        "test_a_column_that_is_not_there_is_not_replaced_by_the_first": [
            ("if not has_header and not label:", "if not has_header:"),
        ],
        "test_an_empty_parquet_with_classes_has_no_rows": [
            ("    for name in table:\n", "    for name in dataset.features:\n"),
        ],
        "test_swallowed_rows_are_found_wherever_the_label_is": [
            ("not first or shape", "False and shape"),
        ],
        "test_a_text_of_several_lines_is_no_swallowed_row": [
            ("sum(breaks) > len(breaks) / 2", "breaks"),
        ],
        "test_rows_that_cannot_be_used": [
            ("if len(cells) != width", "if len(cells) > width"),
            ("strict=True", "strict=False"),
        ],
        "test_all_rows_that_cannot_be_used_are_listed_and_no_other_row_is_lost": [
            ("sum(breaks) > len(breaks) / 2", "all(breaks) and breaks"),
            ("pd.concat([rows, unused])", "rows"),
        ],
        "test_the_row_behind_a_wrong_quotation_mark_is_read": [
            ("start = line", "start = line + 1"),
        ],
        "test_the_line_of_a_row_is_the_one_on_which_it_begins": [
            ("line = start + reader.line_num + 1", "line = start + reader.line_num"),
        ],
        "test_blank_lines_and_empty_rows": [
            ("skipinitialspace=True", "skipinitialspace=False"),
            ('rows.loc[cells == "", "problem"] = EMPTY', "pass"),
            ("if n >= first and", "if"),
        ],
        "test_labels_are_read_as_they_are_meant": [
            ('normalize("NFKC"', 'normalize("NFC"'),
            (r'r"^(-?\d+)\.0{0,2}$"', r'r"^(-?\d+)\.0$"'),
            ("char.isprintable() or char.isspace()", "char.isprintable()"),
        ],
        "test_a_header_that_leaves_a_question_is_asked_about": [
            ("if not texts or labelled and {*label}", "if {*label}"),
        ],
        "test_columns_that_the_reader_names": [
            ("{*label} & {*texts}", "{*label} - {*label}"),
            ("names.count(name) == 1", "names.count(name) >= 1"),
        ],
        "test_two_columns_of_the_label_that_are_not_one_to_one_are_asked_about": [
            ("== len(pairs)).all()", "== len(pairs)).any()"),
        ],
        "test_of_two_columns_of_the_label_the_names_are_taken": [
            ("if not name.isdecimal()]", "if name.isdecimal()]"),
        ],
        "test_files_of_which_some_would_be_lost": [
            ("or totals - {count}", ""),
            ("int(match[4] or 0) for", "found.index(match) for"),
        ],
        "test_a_field_of_three_million_characters": [
            ("field_size_limit(2**31 - 1)", "field_size_limit(131_072)"),
        ],
        "test_a_first_row_is_no_header_for_one_word_in_it": [
            ("return not any(map(str.isdecimal, names))", "return True"),
        ],
        "test_what_cannot_be_a_text": [
            ('char.isprintable() and char != " "', "char.isprintable()"),
        ],
        "test_encodings_with_a_mark": [
            ("codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE", "codecs.BOM_UTF16_LE,"),
        ],
        "test_legal_words_of_windows_1252_are_read": [
            ("|(?<![A-Z])[", "|["),
            ("\\xa0\\xbb])", "\\xa0])"),
        ],
        "test_bytes_that_are_no_text": [
            ("[\\xc2\\xc3](?!", "[\\xc4](?!"),
            ("|(?<![A-Z])[\\xc2\\xc3][\\x80-\\xbf]", ""),
            ("|\\xe2\\x80", ""),
            ("|\\xf0\\x9f", ""),
            ('count(b"\\n", 0, error.start) + 1', 'count(b"\\n", 0, error.start)'),
            (r"\x1c-\x1f\x81", r"\x1c-\x1f"),
        ],
        "test_a_list_of_json_objects_counts_its_rows": [
            ('unit="row" if is_list', 'unit="row" if not is_list'),
            ("if is_list or item.strip()", "if item and (is_list or item.strip())"),
        ],
    },
    ("agnews_helpers/plumbing/tables.py", "tests/test_cli.py"): {
        "test_a_text_column_may_be_called_like_a_label": [
            ("labelled and {*label} & {*texts}", "{*label} & {*texts}"),
        ],
        "test_a_header_is_never_labelled": [
            (" or may_be_header:", ":"),
            ('not plain_label(asked[-1]).startswith("column ")', "False"),
        ],
        "test_the_column_of_the_label_is_said": [
            ("label if labelled or label_column else []", "label"),
        ],
        "test_a_row_that_cannot_be_read_is_named_before_any_work": [
            ('re.sub(r"\\d+", "0", cell)', "cell"),
        ],
    },
    ("agnews_helpers/plumbing/tables.py", "tests/test_data.py"): {
        "test_at_most_twenty_lines_of_a_problem_and_twenty_problems_are_named": [
            ("map(str, lines[:NAMED])", "map(str, lines[: NAMED + 1])"),
            ("in kinds[:NAMED]:", "in kinds[: NAMED + 1]:"),
        ],
        "test_a_header_in_other_words": [
            ("_repeats(rest[i], 0.1)", "_repeats(rest[i], 0.5)"),
        ],
        "test_a_first_row_whose_label_is_rare_is_no_header": [
            ("max(map(len, names)) > 50", "max(map(len, names)) > 99"),
        ],
    },
    ("agnews_helpers/plumbing/tables.py", "tests/test_layouts.py"): {
        "test_a_layout_that_is_read": [
            ("if len({*map(len, unquoted.values())}) == 1", "if False"),
            ("table[name].map(dict(enumerate(feature.names)))", "table[name]"),
        ],
    },
    ("agnews_helpers/checking.py", "tests/test_checking.py"): {
        "test_a_folder_is_written_only_if_there_is_something_to_write": [
            ("    tokens = _tokens(usable, recipe)\n    if target:", "    if target:"),
        ],
        "test_any_text_that_is_usable_is_written_and_read_again": [
            ("quoting=csv.QUOTE_ALL", "quoting=csv.QUOTE_MINIMAL"),
        ],
        "test_check_prints_classes_tokens_and_flags": [
            ("counts.max() >= UNEQUAL * counts.min()", "counts.max() < counts.min()"),
            ("if steps < FEW_STEPS", "if steps > FEW_STEPS"),
        ],
        "test_several_labels_in_one_cell_are_told": [
            ("if name not in parts and parts", "if parts"),
        ],
        "test_equal_texts_are_listed_with_their_lines_and_labels": [
            ("text=plain_texts(usable)", 'text=usable["text"]'),
            ("duplicated(keep=False)", "duplicated()"),
        ],
        "test_check_says_what_train_refuses": [
            ("_, problems = source.split(recipe)", "problems = []"),
        ],
        "test_tokens_are_counted_whole": [
            ("replace(max_length=8192)", "replace(max_length=512)"),
        ],
        "test_a_class_that_has_too_few_rows_is_a_problem": [
            ("fill_value=0", "fill_value=2"),
        ],
    },
    ("vram_budget/allocator.py", "tests/vram_budget/test_allocator.py"): {
        "test_invariants": [
            (
                "end in self._size_at and end not in self.segments",
                "end in self._size_at",
            ),
            (
                "start in self._start_before and start not in self.segments",
                "start in self._start_before",
            ),
            ("self.allocated -= block.size", "pass"),
        ],
        "test_a_large_block_is_split_only_above_one_mib_of_rest": [
            ("rest > SMALL_SIZE", "rest >= SMALL_SIZE"),
        ],
        "test_best_fit_then_lowest_address": [
            ("(size, -1)", "(size, 2**60)"),
        ],
        "test_what_a_request_takes_from_cuda": [
            ("size <= SMALL_SIZE", "size < SMALL_SIZE"),
            ("size >= MIN_LARGE_ALLOC", "size > MIN_LARGE_ALLOC"),
            ("ROUND_LARGE = 2 * MIB", "ROUND_LARGE = MIB"),
        ],
        "test_a_full_card_gives_back_whole_segments_first": [
            ("            self.empty_cache()\n", "            pass\n"),
        ],
        "test_peaks_stay_and_empty_cache_does_not_touch_live_blocks": [
            ("self.segments.get(address) == size", "self.segments.get(address)"),
            ("max(self.max_allocated, self.allocated)", "self.allocated"),
            ("max(self.max_reserved, self.reserved)", "self.reserved"),
        ],
        "test_small_blocks_share_a_segment": [
            ('pool == "small" and rest', 'pool == "large" and rest'),
        ],
        "test_sizes_are_multiples_of_512": [
            ("-(-size // multiple)", "size // multiple"),
        ],
    },
    ("vram_budget/budget.py", "tests/vram_budget/test_budget.py"): {
        "test_a_batch_of_one_row_has_no_parts": [
            ("if in_parts and rows > 1:", "if in_parts:"),
        ],
        "test_the_card_of_the_changes_is_looked_at": [
            ("    usable_mib(card, system)  # looks at both\n", ""),
        ],
        "test_each_change_saves_memory": [
            ('if card.half_precision == "bf16":', 'if card.half_precision != "bf16":'),
        ],
        "test_a_step_fits_if_it_does_once_the_cache_is_given_back": [
            ("reserved <= mib or runs_within(trace, mib)", "reserved <= mib"),
        ],
        "test_the_parts_of_a_budget_add_up_to_what_is_reserved": [
            (
                '_, parts["CUDA context"] = context_mib(card)',
                'parts["CUDA context"], _ = context_mib(card)',
            ),
            (".iloc[peak]", ".iloc[peak - 1]"),
        ],
        "test_the_largest_batch_is_the_last_that_runs": [
            ("range(1, min(", "range(0, min("),
            ("not is_too_large(most + 1)", "is_too_large(most + 1)"),
        ],
        "test_the_search_stops_at_the_most_rows[5]": [
            ("min(most, MOST_ROWS) + 1", "min(most, MOST_ROWS)"),
            ("min(most, MOST_ROWS)", "most"),
        ],
        "test_the_capability_is_the_cards": [
            ("options.capability or card.capability", "options.capability or (7, 5)"),
        ],
        "test_what_is_so_already_is_no_change": [
            ("case.items() <= usual.items()", "False"),
        ],
        "test_half_of_an_odd_batch_is_the_larger_half": [
            ("-(-rows // 2)", "rows // 2"),
        ],
        "test_a_card_that_is_here_has_no_range": [
            ("if card.free_mib is not None", "if card.free_mib is None"),
        ],
        "test_what_a_system_leaves": [
            ("return worst, best", "return best, worst"),
        ],
        "test_the_claim_of_the_tutorial": [
            ('if system == "windows" else "out', 'if system == "linux" else "out'),
        ],
        "test_the_timeline_climbs_and_falls": [
            ("if rows or allocation.step == step", "if allocation.step == step"),
        ],
        "test_the_table_has_a_row_for_each_case": [
            ("replace(options, attention=attention)", "options"),
        ],
    },
    ("vram_budget/recorder.py", "tests/vram_budget/test_tracing.py"): {
        "test_categories_add_up": [
            (
                'if self.phase == "backward" else "main"',
                'if self.phase == "load" else "main"',
            ),
            ('self._mark(state, "optimizer state")', "pass"),
            ('self._mark(gradients, "gradients")', "pass"),
        ],
        "test_peaks_of_an_independent_count": [
            (
                "in self.live:\n            return\n",
                "in self.live:\n            pass\n",
            ),
        ],
        "test_the_phases_are_found_in_any_step": [
            ('self.phase = "optimizer"', "pass"),
        ],
        "test_op_module_phase_and_step_are_named": [
            ("self.modules[-1] if is_inside", "self.modules[0] if is_inside"),
        ],
        "test_gradients_that_add_up_over_calls_are_refused": [
            ('if self.phase == "backward" and "gradients" in left:', "if False:"),
        ],
        "test_forward_and_backward_alone_are_traced": [
            (
                'if self.phase == "backward" and "gradients" in left:',
                'if self.phase == "backward":',
            ),
        ],
        "test_the_weights_of_another_model_are_counted": [
            ('self._note(self.others[-1], "to", (), "weights", "")', "pass"),
            (
                "self.others.append(self.fake",
                "self.others = [None]\n                self.others.append(self.fake",
            ),
        ],
        "test_constants_of_the_step_are_none_of_its_weights": [
            ('"lift_fresh" in func.__name__', "False"),
        ],
        "test_recurrent_layers_are_refused": [
            (
                "isinstance(module, torch.nn.RNNBase)",
                "isinstance(module, torch.nn.LSTM)",
            ),
        ],
        "test_autocast_for_cuda_is_refused": [
            (
                'torch.is_autocast_enabled("cuda")',
                "False",
                "without a card PyTorch switches it off with a warning: refused, too",
            ),
        ],
        "test_what_a_step_returns_lives_until_the_next_one_returns": [
            ("is_new = allocation.step == self.step", "is_new = True"),
        ],
    },
    ("vram_budget/cuda_standins.py", "tests/vram_budget/test_tracing.py"): {
        "test_a_step_without_a_fused_kernel_is_refused": [
            ("torch.bfloat16 and not flash", "torch.bfloat16 and flash"),
            ("query.shape[1] != key.shape[1]", "False"),
            ("8 if is_half else 4 if flash else 1", "8 if is_half else 1"),
            ("8 if is_half else 4 if flash else 1", "4 if flash else 1"),
        ],
        "test_the_same_steps_have_a_kernel_on_another_card_or_with_a_mask": [
            ("8 if is_half else 4 if flash else 1", "4"),
        ],
        "test_softmax_in_a_step_with_autocast_is_in_fp32_as_on_cuda[log_softmax]": [
            ('"softmax", "log_softmax", ', '"softmax", '),
        ],
    },
    ("vram_budget/recorder.py", "tests/vram_budget/test_families.py"): {
        "test_a_second_gradient_is_added_to_the_first": [
            ('IN_PLACE = {"add", "scatter_add"}', 'IN_PLACE = {"scatter_add"}'),
        ],
        "test_tied_weights_are_one_tensor_with_two_gradients": [
            ("is_sum and is_owned and", "is_sum and"),
        ],
        "test_the_traced_peak_of_a_family_is_the_real_one[DeBERTa-v3]": [
            ('IN_PLACE = {"add", "scatter_add"}', 'IN_PLACE = {"add"}'),
            ("is_sum = newest and", "is_sum = not newest and"),
        ],
    },
    ("vram_budget/tracing.py", "tests/vram_budget/test_families.py"): {
        "test_tied_weights_are_one_tensor_with_two_gradients": [
            ("            model.tie_weights()", "            pass"),
        ],
        "test_a_family_without_a_figure_says_why_in_one_line[XLM]": [
            (
                "except (DataDependentOutputException, DynamicOutputShapeException)",
                "except DynamicOutputShapeException",
            ),
        ],
    },
    ("vram_budget/recorder.py", "tests/vram_budget/test_step_time.py"): {
        "test_operations_are_those_that_pytorch_counts": [
            ("self.flops = 0\n            batch", "batch"),
        ],
    },
    ("vram_budget/tracing.py", "tests/vram_budget/test_tracing.py"): {
        "test_autocast_around_the_call_changes_nothing": [
            ("torch._C._DisableAutocast()", "warnings.catch_warnings()"),
        ],
        "test_the_copies_of_autocast_end_with_the_backward_pass": [
            ("torch._C._DisableAutocast()", 'torch.autocast("cpu", enabled=False)'),
        ],
        "test_op_module_phase_and_step_are_named": [
            ("0 < positions < length", "0 < positions <= length"),
        ],
        "test_peaks_of_an_independent_count": [
            ("a.size if made else -a.size", "a.size"),
            (
                "return model.train()",
                "return model.eval()",
                "the recorder sets the training mode before the first step",
            ),
        ],
        "test_flash_attention_where_the_card_would_choose_it": [
            ('self.precision.removeprefix("pure ")', "self.precision"),
        ],
        "test_categories_add_up": [
            ("shapes[:2] if equal_shapes", "shapes[:1] if equal_shapes"),
        ],
        "test_a_step_that_leaves_more_each_time_is_refused": [
            ("if grown > MOST_LEFT", "if False"),
            ("if grown > MOST_LEFT", "if grown"),
        ],
        "test_autocast_for_cuda_is_refused": [
            ('"error", ".*Disabling"', '"ignore", ".*Disabling"'),
        ],
        "test_a_class_of_models_may_be_given": [
            ('"_from_config") else', '"from_nothing") else'),
        ],
        "test_a_configuration_of_ones_own": [
            ("kind.from_dict(json", "transformers.AutoConfig.for_model(**json"),
        ],
        "test_a_message_names_the_class_that_was_given": [
            ('if name.startswith("Auto") else', "if name else"),
        ],
    },
    ("vram_budget/tracing.py", "tests/vram_budget/test_budget.py"): {
        "test_a_weight_that_the_prime_divides_does_not_scale": [
            ("all(a.step or a.size % PRIME_ROWS", "all(a.step or a.size"),
        ],
        "test_other_numbers_of_rows_follow_from_one_trace": [
            ("a.size // PRIME_ROWS * rows)", "a.size // PRIME_ROWS)"),
            ("whole.flops // PRIME_ROWS * rows", "whole.flops"),
        ],
        "test_a_step_in_parts_is_traced_for_each_number_of_rows": [
            ("if options.scalable and rows > 0:", "if rows > 0:"),
        ],
    },
    ("vram_budget/step_time.py", "tests/vram_budget/test_step_time.py"): {
        "test_what_has_no_gradient_is_not_moved_by_adam": [
            ('a.category == "gradients" and a.step == 1', 'a.phase == "load"'),
        ],
        "test_traffic_is_each_tensor_written_and_read_once": [
            ("ADAM_BYTES = 28", "ADAM_BYTES = 20"),
            ("2 * sum(tensors)", "sum(tensors)"),
            ("moved, len(tensors)", "moved, len(made)"),
            ("sum(gradients) / 4", "sum(gradients) / 2"),
            ('and a.phase != "optimizer"', ""),
            (
                'and a.category != "workspaces"',
                "",
                "a thread takes its workspace in step 1",
            ),
            (
                "a.step == 2",
                "a.step == 1",
                "outside of the optimizer each step makes the same tensors",
            ),
        ],
        "test_batches_of_any_length_follow_from_three": [
            (
                "step_work(step, config, rows, length) for",
                "step_work(step, config, 1, length) for",
            ),
            ("np.vander(lengths, 3)", "np.vander([max_length], 3)"),
        ],
        "test_a_card_is_slow_at_worst_and_fast_at_best": [
            ("card.bandwidth * 1e9", "card.bandwidth * 1e10"),
            ("(share * card.fp32_tflops", "(card.fp32_tflops"),
            ("return best, worst", "return worst, best"),
            ("card.power_limited or", ""),
        ],
        "test_half_of_the_lanes_of_newer_cards_have_other_work": [
            ("card.capability >= (8, 6)", "card.capability >= (8, 0)"),
            ("or card.capability >= (8, 6)", ""),
        ],
        "test_no_card_is_faster_than_python": [
            ("tensors * launch", "0"),
        ],
        "test_a_card_of_unknown_speed_has_no_estimate[fp32_tflops]": [
            ("if not card.fp32_tflops or not card.bandwidth", "if not card.bandwidth"),
        ],
        "test_most_published_products_are_within_their_shares": [
            ("FULL_SHARE = (0.5, 0.85)", "FULL_SHARE = (0.6, 0.95)"),
            ("LIMITED_SHARE = (0.4, 0.7)", "LIMITED_SHARE = (0.5, 0.85)"),
        ],
        "test_published_runs_are_within_the_range": [
            ("BANDWIDTH_SHARE = (0.5, 0.9)", "BANDWIDTH_SHARE = (0.1, 0.9)"),
        ],
    },
    ("vram_budget/cards.py", "tests/vram_budget/test_cards.py"): {
        "test_a_card_of_impossible_facts_is_refused_in_one_line": [
            ("if len(pair) != 2 or not all(", "if not all("),
        ],
        "test_a_card_of_another_size_is_another_card[A100-PCIE-80GB]": [
            ("1 <= float(size[1]) / card.vram_gib < 1.1", "card.vram_gib"),
        ],
        "test_another_card_is_not_taken_for_a_listed_one[titan]": [
            ("(?<!titan )", ""),
        ],
        "test_a_card_is_found_by_what_people_call_it[T4 16GB-T4]": [
            (
                "1 <= float(size[1]) / card.vram_gib < 1.1",
                "float(size[1]) == card.vram_gib",
            ),
        ],
        "test_a_card_is_found_by_what_people_call_it[1650 Mobile-GTX 1650 Laptop]": [
            ('.replace("mobile", "laptop")', ""),
        ],
        "test_a_card_in_this_machine_keeps_its_name": [
            ("name=properties.name, vram", "vram"),
        ],
        "test_a_card_of_impossible_facts_is_refused_in_one_line[facts1]": [
            ("0 <= each < inf", "not each < 0"),
        ],
        "test_a_card_is_found_by_what_people_call_it[NVIDIA GeForce GTX 1650 Ti with "
        "Max-Q Design-GTX 1650 Ti Max-Q]": [
            ("|with|design", ""),
        ],
        "test_multiprocessors_and_clock_give_the_printed_speed[P100-9.3]": [
            ("((6, 0), (7, 0)", "((7, 0)"),
        ],
        "test_the_half_precision_of_a_card[MX450-None]": [
            ("GTX|MX|", "GTX|"),
        ],
        "test_the_bare_context_is_as_reported[14-65]": [
            ("22 + 2.84", "2.84"),
        ],
        "test_a_card_with_a_listed_name_and_other_multiprocessors_is_another": [
            ("if listed.multiprocessors == count", "if listed"),
        ],
        "test_a_card_of_the_list_is_known_by_its_name": [
            ("vram_gib=gib, free_mib=free_mib\n", "free_mib=free_mib\n"),
            ("vram_gib=gib, free_mib=free_mib\n", "vram_gib=gib\n"),
        ],
        "test_the_facts_of_another_card_are_derived[Tesla T4]": [
            ("2e-6 * memory_clock", "1e-6 * memory_clock"),
            ("2e-9 * card.cuda_cores", "1e-9 * card.cuda_cores"),
        ],
        "test_a_laptop_card_is_limited_by_its_power": [
            ('power_limited="Laptop" in properties.name', "power_limited=False"),
        ],
        "test_without_clocks_nothing_is_made_up[memory_clock_rate]": [
            ("(clock and memory_clock and bits)", "(clock and bits)"),
        ],
        "test_no_fact_of_a_card_is_mistyped[RTX 3090]": [
            ("GDDR6X, 384 bit | 936", "GDDR6X, 256 bit | 936"),
        ],
    },
    ("agnews_helpers/hardware.py", "tests/test_hardware.py"): {
        "test_the_card_of_this_machine": [
            (", free_mib())", ")"),
        ],
    },
}
