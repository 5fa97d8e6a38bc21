# Candidates against DFT: Quantum ESPRESSO's results (qe.enabled), tables of others (compare_dft.baselines), or both.


# Elements and reference phases with the settings of the candidates. What is computed is kept for other campaigns.
rule reference_energies:
    input:
        validated=campaigns.stage_input("validate_qe"),
        train=campaigns.at("build_crysdb", "crysdb/train.parquet"),
        phases=campaigns.reference_phases,
    output:
        "results/{campaign}/references/phases.parquet",
    log:
        "logs/{campaign}/reference_energies.log",
    benchmark:
        "results/{campaign}/timings/reference_energies.tsv"
    retries: 2
    conda:
        "../../envs/qe.yaml"
    threads: campaigns.threads("dft")
    resources:
        mem_mb=campaigns.mem_mb("dft"),
        runtime=campaigns.runtime("dft"),
    params:
        config="results/{campaign}/config.yaml",
        validation=lambda wildcards, input: folder_option(
            "--validation", input.validated
        ),
        crysdb=subpath(input.train, parent=True),
        work="work/reference_energies",
        settings=campaigns.settings("reference_energies"),
        code=stage_code_hash("reference_energies"),
    shell:
        "dao-pipeline reference-energies --config {params.config:q} {params.validation}"
        " --crysdb {params.crysdb:q} --out {output:q} --work {params.work:q} --minutes {resources.runtime} > {log:q} 2>&1"


rule compare_dft:
    input:
        screened=campaigns.at("screen_candidates", "candidates/screened.parquet"),
        validated=campaigns.stage_input("validate_qe"),
        references=campaigns.stage_input("reference_energies"),
        test=campaigns.at("build_crysdb", "crysdb/test.parquet"),
        baselines=campaigns.dft_baselines,
    output:
        candidates="results/{campaign}/comparison/candidates.parquet",
        compositions="results/{campaign}/comparison/compositions.parquet",
        summary="results/{campaign}/comparison/summary.parquet",
    log:
        "logs/{campaign}/compare_dft.log",
    benchmark:
        "results/{campaign}/timings/compare_dft.tsv"
    conda:
        "../../envs/pipeline.yaml"
    threads: campaigns.threads("cpu")
    resources:
        mem_mb=campaigns.mem_mb("cpu"),
        runtime=campaigns.runtime("cpu"),
    params:
        config="results/{campaign}/config.yaml",
        out=subpath(output.summary, parent=True),
        validation=lambda wildcards, input: folder_option(
            "--validation", input.validated
        ),
        references=lambda wildcards, input: option("--references", input.references),
        timings="results/{campaign}/timings",
        settings=campaigns.settings("compare_dft"),
        code=stage_code_hash("compare_dft"),
    shell:
        "dao-pipeline compare-dft --config {params.config:q} --screened {input.screened:q} {params.validation}"
        " {params.references} --timings {params.timings:q} --known {input.test:q} --out {params.out:q} > {log:q} 2>&1"
