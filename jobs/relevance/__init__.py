"""How relevance is labelled and distilled, beside the steps `jobs.label_relevance` and `jobs.distill_relevance`.

pairs                what is judged or shown, with times and sides        disclosed_text   what of it may be read
teachers             rules, a local model or an endpoint, behind one `ask`
    local_teacher, teacher_endpoint (endpoint_pairs, endpoint_trouble, completion_reading, request_pace)
    answer_cache, token_budget                                            asked once, paid once, never too much
chains, answers      the tables of labels                                 audit_sheet      200 of them for people
teacher_training     a local teacher, fine-tuned on the chains            fine_tune_settings
distilled_pairs      what students learn from                             student_settings
student_training     the students; kept_students, fitted_students         quality          judged on test queries
dated_rows           since when a row counts                              vectors, pair_scores   the tables served
pair_answer          one pair, for `tailrank explain`
"""
