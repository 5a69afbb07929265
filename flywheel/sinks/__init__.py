"""Where a run's numbers go beside its log.jsonl: a file here, and a table of conf/log/ with its name and its settings.

    begin(settings, folder) -> a sink:  numbers(kind, {name: number})   table(name, columns, rows)   video(name, path)
                                        artifact(name, type, path, about)   close()

`settings` are those of the table, with name, group, job_type, tags, id and config. Every number is KIND/NAME in all of
them, and is drawn over the step of its kind (flywheel.log.STEPS). The library is imported inside `begin`, whose
ValueError says what is missing."""
